"""What a job's container finds of Google Cloud: its identity at the metadata server, and Secret Manager.

The paths and answers are those of the metadata server of Compute Engine and of Secret Manager's v1 API.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

SERVICE_ACCOUNT: Final = "jobs@sandbox.iam.gserviceaccount.com"
_TOKEN: Final = "ya29.sandbox-token-that-opens-nothing-but-the-sandbox"  # noqa: S105 - see its text
_IDENTITY: Final = "/computeMetadata/v1/instance/service-accounts/{account}"
_NOT_AUTHENTICATED: Final = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other"
    " valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
)


def google_app(secrets: Mapping[str, str | None]) -> Starlette:
    """Return the app; `secrets` maps `projects/…/secrets/…/versions/N` to its text.

    A secret whose text is None is there, but the jobs' service account may not read it.
    """
    return Starlette(
        routes=[
            Route(_IDENTITY + "/token", _token),
            Route(_IDENTITY + "/email", _email),
            Route("/v1/{name:path}:access", _Secrets(secrets).access),
        ]
    )


def container_variables(url: str) -> dict[str, str]:
    """Return the variables by which Google's clients in a container find the app at `url`."""
    host = url.removeprefix("http://")
    return {
        "GCE_METADATA_HOST": host,
        "GCE_METADATA_IP": host,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"{url}/",
    }


async def _token(request: Request) -> Response:
    answer = {"access_token": _TOKEN, "expires_in": 3599, "token_type": "Bearer"}
    return _metadata(request, JSONResponse(answer))


async def _email(request: Request) -> Response:
    return _metadata(request, PlainTextResponse(SERVICE_ACCOUNT))


def _metadata(request: Request, answer: Response) -> Response:
    if request.headers.get("Metadata-Flavor") != "Google":
        return PlainTextResponse("Missing Metadata-Flavor:Google header.", 403)
    if request.path_params["account"] not in {"default", SERVICE_ACCOUNT}:
        return PlainTextResponse("The service account was not found.", 404)
    answer.headers["Metadata-Flavor"] = "Google"
    return answer


class _Secrets:
    def __init__(self, secrets: Mapping[str, str | None]) -> None:
        self._secrets = secrets

    async def access(self, request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {_TOKEN}":
            return _error(401, "UNAUTHENTICATED", _NOT_AUTHENTICATED)
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
