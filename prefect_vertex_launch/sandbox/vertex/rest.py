"""The job service of the sandbox over REST, with Google's JSON and Google's error format."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.sandbox.faults.http_wire import HttpFace
from prefect_vertex_launch.sandbox.faults.registry import Fault
from prefect_vertex_launch.sandbox.json_text import read_json
from prefect_vertex_launch.sandbox.vertex.backend import VertexBackend
from prefect_vertex_launch.sandbox.vertex.refusal import VertexRefusal, invalid_argument, refused_with

_JOBS: Final = "/v1/projects/{project}/locations/{location}/customJobs"
_CALL: Final = re.compile(r".*/customJobs(/[^/:]+)?(:cancel)?")
_RPCS: Final = {
    ("POST", False): "CreateCustomJob",
    ("GET", False): "ListCustomJobs",
    ("GET", True): "GetCustomJob",
    ("DELETE", True): "DeleteCustomJob",
}


def vertex_app(backend: VertexBackend) -> Starlette:
    """Return the app that answers the CustomJob calls of JobService from `backend`."""
    endpoints = _Endpoints(backend)
    return Starlette(
        routes=[
            Route(_JOBS, _answering(endpoints.create), methods=["POST"]),
            Route(_JOBS, _answering(endpoints.list), methods=["GET"]),
            Route(_JOBS + "/{job}:cancel", _answering(endpoints.cancel), methods=["POST"]),
            Route(_JOBS + "/{job}", _answering(endpoints.get), methods=["GET"]),
            Route(_JOBS + "/{job}", _answering(endpoints.delete), methods=["DELETE"]),
        ],
        exception_handlers={HTTPException: _unknown_address},
    )


def vertex_face(backend: VertexBackend) -> HttpFace:
    """Return how faults speak REST."""
    return HttpFace("vertex", _rpcs, _refusal, backend.calls)


def _rpcs(scope: Scope, _body: bytes) -> frozenset[str]:
    match = _CALL.fullmatch(scope["path"])
    if match is None:
        return frozenset()
    rpc = "CancelCustomJob" if match[2] else _RPCS.get((scope["method"], match[1] is not None))
    return frozenset({rpc} if rpc else ())


def _refusal(fault: Fault) -> tuple[int, dict[str, str], bytes]:
    refusal = refused_with(fault.message, http_status=fault.status, code=fault.code)
    answer = _error(refusal.http_status, refusal.status.name, refusal.message)
    headers = {"content-type": "application/json"}
    if fault.retry_after_seconds is not None:
        headers["retry-after"] = str(fault.retry_after_seconds)
    return answer.status_code, headers, bytes(answer.body)


class _Endpoints:
    def __init__(self, backend: VertexBackend) -> None:
        self._backend = backend

    async def create(self, request: Request) -> Message:
        job = _parse_job(await request.body())
        return self._backend.create(_parent(request), job)

    async def get(self, request: Request) -> Message:
        return self._backend.get(_name(request))

    async def list(self, request: Request) -> Message:
        query = request.query_params
        try:
            page_size = int(query.get("pageSize", "0"))
            read_mask = FieldMask()
            read_mask.FromJsonString(query.get("readMask", ""))
        except ValueError as error:
            raise invalid_argument(f"Invalid query parameter: {error}") from error
        return self._backend.list(
            _parent(request), query.get("filter", ""), page_size, query.get("pageToken", ""), read_mask
        )

    async def cancel(self, request: Request) -> Message:
        self._backend.cancel(_name(request))
        return Empty()

    async def delete(self, request: Request) -> Message:
        return self._backend.delete(_name(request))


def _parent(request: Request) -> str:
    return f"projects/{request.path_params['project']}/locations/{request.path_params['location']}"


def _name(request: Request) -> str:
    return f"{_parent(request)}/customJobs/{request.path_params['job']}"


def _parse_job(body: bytes) -> Any:
    try:
        value: Any = read_json(body)
        if not isinstance(value, dict):
            raise invalid_argument("Invalid JSON payload received. The body must be an object.")
        return json_format.ParseDict(cast("dict[str, Any]", value), cast("Any", CustomJob).pb()())
    except (json_format.ParseError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise invalid_argument(f"Invalid JSON payload received. {error}") from error


def _answering(endpoint: Callable[[Request], Awaitable[Message]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            message = await endpoint(request)
        except VertexRefusal as refusal:
            return _error(refusal.http_status, refusal.status.name, refusal.message)
        # Google's clients ask for numbers instead of names: `$alt=json;enum-encoding=int`.
        numbers = "enum-encoding=int" in request.query_params.get("$alt", "")
        text = json_format.MessageToJson(message, indent=None, use_integers_for_enums=numbers)
        return Response(text, media_type="application/json")

    return answer


async def _unknown_address(_request: Request, error: Exception) -> Response:
    http_status = error.status_code if isinstance(error, HTTPException) else 404
    return _error(http_status, "NOT_FOUND" if http_status == 404 else "UNIMPLEMENTED", "Method not found.")


def _error(http_status: int, status: str, message: str) -> Response:
    return JSONResponse({"error": {"code": http_status, "status": status, "message": message}}, http_status)
