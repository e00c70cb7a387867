"""What gets a test into the sandbox over the wire: its service account, an access token, the API key."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import httpx
from google.oauth2 import service_account

from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.vertex.jobs import VertexJobs

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


def google_credentials(info: Mapping[str, str]) -> service_account.Credentials:
    """Google's own credentials, made of the JSON of a service account key."""
    return service_account.Credentials.from_service_account_info(info, scopes=SCOPES)


def jobs_in(sandbox: Sandbox, **more: Any) -> VertexJobs:
    return VertexJobs(
        project="p",
        location="us-central1",
        endpoint=sandbox.vertex_grpc_url,
        credentials=google_credentials(sandbox.service_account_info("p")),
        **more,
    )


def token_header(sandbox: Sandbox) -> tuple[tuple[str, str], ...]:
    """The metadata of a gRPC call, or the headers of a REST call, with an access token."""
    return (("authorization", f"Bearer {sandbox.google.new_token()}"),)


class KnownEverywhere(httpx.Auth):
    """Shows the servers of a sandbox what each of them asks for."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._rest_url = sandbox.vertex_rest_url
        self._token = dict(token_header(sandbox))
        self._basic = httpx.BasicAuth("api", sandbox.api_key)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        if str(request.url).startswith(self._rest_url):
            request.headers.update(self._token)
            yield request
        else:
            yield from self._basic.auth_flow(request)
