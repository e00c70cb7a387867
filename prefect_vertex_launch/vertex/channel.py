"""The gRPC channel to the job service, one for everyone in an event loop with the same endpoint and key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import grpc.aio
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError

from prefect_vertex_launch.core.errors import AuthenticationFailed, Problem
from prefect_vertex_launch.vertex.client import JobServiceAsyncClient, JobServiceGrpcAsyncIOTransport
from prefect_vertex_launch.vertex.errors import FIX_CREDENTIALS
from prefect_vertex_launch.vertex.signed_calls import SignedCalls

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),
    # A server that comes back is found within seconds, not after gRPC's own two minutes.
    ("grpc.max_reconnect_backoff_ms", 10_000),
    # Event loops and credentials have channels of their own, down to the connection.
    ("grpc.use_local_subchannel_pool", 1),
]

_HERE = {"localhost", "127.0.0.1", "::1"}


@dataclass(eq=False, slots=True)
class _Shared:
    """A client and how many use it. It holds the credentials, so that no later ones get the same `id`."""

    client: Any
    credentials: Credentials | None
    users: int = 0


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], _Shared]] = WeakKeyDictionary()


class Channel:
    """One user's part in a channel.

    `endpoint` is `https://host` or `grpc://host:port`, the latter without TLS and with no credentials but
    those of this machine's own sandbox. Nothing is opened before the first call of `client`.
    """

    def __init__(self, endpoint: str, credentials: Credentials | None) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._key = (endpoint, id(credentials))
        self._loop: asyncio.AbstractEventLoop | None = None

    def client(self) -> Any:
        """Return Google's client of the job service for the running event loop.

        Raises AuthenticationFailed for credentials that cannot be used.
        """
        loop = asyncio.get_running_loop()
        clients = _shared.setdefault(loop, {})
        if self._loop is not loop:
            if self._key not in clients:
                client = _open_client(self._endpoint, self._credentials)
                clients[self._key] = _Shared(client, self._credentials)
            clients[self._key].users += 1
            self._loop = loop
        return clients[self._key].client

    async def aclose(self) -> None:
        """Let go of the channel; the last of those who share it closes it."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        clients = _shared[loop]
        shared = clients[self._key]
        shared.users -= 1
        if shared.users == 0:
            del clients[self._key]
            await shared.client.transport.close()


def _open_client(endpoint: str, credentials: Credentials | None) -> JobServiceAsyncClient:
    scheme, _, host = endpoint.partition("://")
    if scheme == "grpc":
        signing = [SignedCalls(credentials)] if credentials and _stays_here(host, credentials) else []
        channel = grpc.aio.insecure_channel(host, options=_OPTIONS, interceptors=signing)
    else:
        transport = cast("Any", JobServiceGrpcAsyncIOTransport)
        try:
            channel = transport.create_channel(
                host if ":" in host else f"{host}:443", credentials=credentials, options=_OPTIONS
            )
        except GoogleAuthError as error:
            raise AuthenticationFailed(
                Problem("Google credentials", f"they cannot be used: {error}", fix=FIX_CREDENTIALS)
            ) from error
    return JobServiceAsyncClient(transport=JobServiceGrpcAsyncIOTransport(channel=channel))


def _stays_here(host: str, credentials: Credentials) -> bool:
    """Tell whether a token comes from this machine and is sent to it: no other may go in the clear."""
    token_uri = getattr(credentials, "_token_uri", None)  # google-auth has no public name for it
    return (
        isinstance(token_uri, str) and {urlsplit(token_uri).hostname, urlsplit(f"//{host}").hostname} <= _HERE
    )
