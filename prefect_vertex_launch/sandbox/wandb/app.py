"""The W&B backend of the sandbox as an ASGI app: GraphQL, file streams, storage, artifacts, telemetry."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from prefect_vertex_launch.sandbox.faults.http_wire import HttpFace
from prefect_vertex_launch.sandbox.faults.registry import Fault
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.sandbox.wandb.graphql.execution import answer, operation_names, refusal
from prefect_vertex_launch.sandbox.wandb.graphql.operations import BESIDE_GRAPHQL
from prefect_vertex_launch.sandbox.wandb.login import NOT_LOGGED_IN, login_problem
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal
from prefect_vertex_launch.sandbox.wandb.runs import StreamRequest

_SAID: Final[Mapping[int, str]] = {
    200: "internal server error",
    401: NOT_LOGGED_IN,
    403: "permission denied",
    429: "rate limit exceeded",
}


def wandb_app(backend: WandbBackend) -> Starlette:
    """Return the app; set `backend.base_url` to where it is served before the first request."""
    endpoints = _Endpoints(backend)
    return Starlette(
        routes=[
            Route("/graphql", endpoints.graphql, methods=["POST"]),
            Route("/files/{entity}/{project}/{run}/file_stream", endpoints.file_stream, methods=["POST"]),
            Route("/storage/{path:path}", endpoints.upload, methods=["PUT"]),
            Route("/storage/{path:path}", endpoints.download, methods=["GET"]),
            Route(
                "/artifactsV2/{region}/{entity}/{project}/{collection}/{artifact}/{digest}/{name:path}",
                endpoints.artifact_file,
                methods=["GET"],
            ),
            Route("/sdk/otel/v1/{signal}", endpoints.telemetry, methods=["POST"]),
        ]
    )


def wandb_face() -> HttpFace:
    """Return how faults speak as W&B."""
    return HttpFace("wandb", _operations, _refusal)


def _operations(scope: Scope, body: bytes) -> frozenset[str]:
    if scope["path"] == "/graphql":
        return operation_names(body)
    first = scope["path"].split("/")[1] if "/" in scope["path"] else ""
    return frozenset({BESIDE_GRAPHQL[key]} if (key := (scope["method"], first)) in BESIDE_GRAPHQL else ())


def _refusal(fault: Fault) -> tuple[int, dict[str, str], bytes]:
    http_status = fault.status or HTTPStatus.INTERNAL_SERVER_ERROR
    phrases = {status.value: status.phrase.lower() for status in HTTPStatus}
    message = fault.message or _SAID.get(http_status) or phrases.get(http_status, "unknown error")
    headers = {"content-type": "application/json"}
    if fault.retry_after_seconds is not None:
        headers["retry-after"] = str(fault.retry_after_seconds)
    return http_status, headers, bytes(_error(http_status, message).body)


class _Endpoints:
    def __init__(self, backend: WandbBackend) -> None:
        self._backend = backend

    async def graphql(self, request: Request) -> Response:
        text = await request.body()
        problem = self._stranger(request)
        result = refusal(401, problem) if problem else answer(self._backend, text)
        return Response(result.body, result.http_status, media_type="application/json")

    async def file_stream(self, request: Request) -> Response:
        text = await request.body()
        if problem := self._stranger(request):
            return _error(401, problem)
        try:
            sent = StreamRequest.model_validate_json(text)
            project = self._backend.ensure_project(
                request.path_params["entity"], request.path_params["project"]
            )
            answered = self._backend.runs.stream(
                project.entity, project.name, request.path_params["run"], sent
            )
        except WandbRefusal as problem:
            return _error(problem.http_status, problem.message)
        except ValidationError as problem:
            return _error(400, f"not a file_stream request: {problem.errors()[0]['msg']}")
        return JSONResponse(answered)

    async def upload(self, request: Request) -> Response:
        content = await request.body()
        if problem := self._without_signature(request):
            return _error(401, problem)
        self._backend.storage.write(request.path_params["path"], content)
        return Response(status_code=200)

    async def download(self, request: Request) -> Response:
        if problem := self._without_signature(request):
            return _error(401, problem)
        return self._file(request.path_params["path"])

    async def artifact_file(self, request: Request) -> Response:
        if problem := self._stranger(request):
            return _error(401, problem)
        artifact = self._backend.artifacts.get(request.path_params["artifact"])
        if artifact is None:
            return _error(404, "artifact not found")
        return self._file(artifact.folder + request.path_params["name"])

    async def telemetry(self, request: Request) -> Response:
        await request.body()
        return JSONResponse({})

    def _file(self, path: str) -> Response:
        content = self._backend.storage.read(path)
        if content is None:
            return _error(404, "file not found")
        return Response(content, media_type="application/octet-stream")

    def _without_signature(self, request: Request) -> str | None:
        """Return the problem of a request for a file, None if it has the key or a signed address."""
        # Addresses of files are signed at W&B: whoever holds one may read or write it without a key.
        signature = request.query_params.get("signature", "")
        is_signed = self._backend.storage.is_signature(request.path_params["path"], signature)
        return None if is_signed else self._stranger(request)

    def _stranger(self, request: Request) -> str | None:
        key = self._backend.api_key.get_secret_value()
        return login_problem(request.headers.get("authorization", ""), key)


def _error(http_status: int, message: str) -> Response:
    return JSONResponse({"errors": [{"message": message}], "data": None}, http_status)
