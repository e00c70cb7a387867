"""Google Cloud beside Vertex AI: tokens, and for a job's container its metadata server and Secret Manager.

The paths and answers are those of OAuth 2 at Google, of Compute Engine and of Secret Manager's v1 API.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from prefect_vertex_launch.sandbox.google.access import TOKEN_SECONDS, GoogleAccess

SERVICE_ACCOUNT: Final = "jobs@sandbox.iam.gserviceaccount.com"
_IDENTITY: Final = "/{key}/computeMetadata/v1/instance/service-accounts/{account}"
_TOKEN_PATH: Final = "/token"  # noqa: S105 - an address
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
NOT_AUTHENTICATED: Final = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other"
    " valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
)


def google_app(access: GoogleAccess, texts: Mapping[str, str | None]) -> Starlette:
    """Return the app; `texts` maps `projects/…/secrets/…/versions/N` to its text.

    A secret whose text is None is there, but the jobs' service account may not read it.
    """
    metadata = _Metadata(access)
    return Starlette(
        routes=[
            Route(_TOKEN_PATH, _Tokens(access).exchange, methods=["POST"]),
            Route(_IDENTITY + "/token", metadata.token),
            Route(_IDENTITY + "/email", metadata.email),
            Route("/v1/{name:path}:access", _Secrets(access, texts).access),
        ]
    )


def token_uri(url: str) -> str:
    """Return where a service account gets its tokens from, with the app at `url`."""
    return url + _TOKEN_PATH


def container_variables(url: str, access: GoogleAccess) -> dict[str, str]:
    """Return the variables by which Google's clients in a container find the app at `url`."""
    host = f"{url.removeprefix('http://')}/{access.metadata_path}"
    return {
        "GCE_METADATA_HOST": host,
        "GCE_METADATA_IP": host,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"{url}/",
    }


def vertex_refusal(access: GoogleAccess, authorization: str) -> Response | None:
    """Return the answer to a REST call without a token of this sandbox, None for one that has it."""
    if access.admits(authorization):
        return None
    return _error(401, "UNAUTHENTICATED", NOT_AUTHENTICATED)


class _Tokens:
    """The token endpoint of OAuth 2, for what a service account has signed (RFC 7523)."""

    def __init__(self, access: GoogleAccess) -> None:
        self._access = access

    async def exchange(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode("latin-1")))
        if form.get("grant_type") != _GRANT:
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        try:
            token = self._access.token_for(form.get("assertion", ""))
        except ValueError as problem:
            return JSONResponse({"error": "invalid_grant", "error_description": str(problem)}, 400)
        return JSONResponse(_granted(token))


def _granted(token: str) -> dict[str, Any]:
    return {"access_token": token, "expires_in": TOKEN_SECONDS, "token_type": "Bearer"}


class _Metadata:
    """The metadata server of a job's machine."""

    def __init__(self, access: GoogleAccess) -> None:
        self._access = access

    async def token(self, request: Request) -> Response:
        return self._answer(request, JSONResponse(_granted(self._access.new_token())))

    async def email(self, request: Request) -> Response:
        return self._answer(request, PlainTextResponse(SERVICE_ACCOUNT))

    def _answer(self, request: Request, answer: Response) -> Response:
        key: str = request.path_params["key"]
        if not secrets.compare_digest(key.encode(), self._access.metadata_path.encode()):
            return PlainTextResponse("Not Found", 404)
        if request.headers.get("Metadata-Flavor") != "Google":
            return PlainTextResponse("Missing Metadata-Flavor:Google header.", 403)
        if request.path_params["account"] not in {"default", SERVICE_ACCOUNT}:
            return PlainTextResponse("The service account was not found.", 404)
        answer.headers["Metadata-Flavor"] = "Google"
        return answer


class _Secrets:
    def __init__(self, access: GoogleAccess, texts: Mapping[str, str | None]) -> None:
        self._access = access
        self._secrets = texts

    async def access(self, request: Request) -> Response:
        if not self._access.admits(request.headers.get("Authorization", "")):
            return _error(401, "UNAUTHENTICATED", NOT_AUTHENTICATED)
        name: str = request.path_params["name"]
        name = self._newest(name) or name
        if name not in self._secrets:
            secret = name.partition("/versions/")[0]
            return _error(404, "NOT_FOUND", f"Secret [{secret}] not found or has no versions.")
        text = self._secrets[name]
        if text is None:
            denied = "Permission 'secretmanager.versions.access' denied for resource"
            return _error(403, "PERMISSION_DENIED", f"{denied} '{name}' (or it may not exist).")
        data = base64.b64encode(text.encode()).decode()
        return JSONResponse({"name": name, "payload": {"data": data}})

    def _newest(self, name: str) -> str | None:
        """Return the version that `…/versions/latest` stands for."""
        secret, _, version = name.rpartition("/")
        numbers = [
            int(number)
            for number in (known.removeprefix(f"{secret}/") for known in self._secrets)
            if number.isdecimal()
        ]
        return f"{secret}/{max(numbers)}" if version == "latest" and numbers else None


def _error(http_status: int, status: str, message: str) -> Response:
    error: dict[str, Any] = {"code": http_status, "message": message, "status": status}
    return JSONResponse({"error": error}, http_status)
