"""Calls of the job service over gRPC: only those with an access token of the sandbox are answered."""

from __future__ import annotations

from typing import Any

import grpc

from prefect_vertex_launch.sandbox.google.access import GoogleAccess
from prefect_vertex_launch.sandbox.google.app import NOT_AUTHENTICATED
from prefect_vertex_launch.sandbox.wrapped_calls import Answer, WrappedCalls


class CallsWithToken(WrappedCalls):
    """Refuses the calls that show no token."""

    def __init__(self, access: GoogleAccess) -> None:
        self._access = access

    async def respond(self, path: str, request: Any, context: Any, answer: Answer) -> Any:  # noqa: ARG002 - another needs them
        """Answer one call as the server does, if it has a token."""
        headers: dict[str, object] = dict(context.invocation_metadata() or ())
        if not self._access.admits(str(headers.get("authorization", ""))):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, NOT_AUTHENTICATED)
        return await answer(context)
