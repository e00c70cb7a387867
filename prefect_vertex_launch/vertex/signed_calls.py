"""Access tokens for calls without TLS, as to the sandbox: gRPC by itself sends credentials over TLS only."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError

from prefect_vertex_launch.vertex.errors import NOT_SENT


class SignedCalls(grpc.aio.UnaryUnaryClientInterceptor):
    """Puts an access token of the credentials into each call."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials: Any = credentials
        self._renewing = asyncio.Lock()

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Send a call with a token; without one it fails as a call over TLS does."""
        try:
            async with self._renewing:
                if not self._credentials.valid:
                    await asyncio.to_thread(self._renew)
        except GoogleAuthError as error:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                details=f"{NOT_SENT} with error: {error}",
            ) from error
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()))
        metadata.add("authorization", f"Bearer {self._credentials.token}")
        return await continuation(client_call_details._replace(metadata=metadata), request)

    def _renew(self) -> None:
        # It costs a tenth of a second to import, and is needed in the clear only.
        from google.auth.transport.requests import Request

        self._credentials.refresh(Request())
