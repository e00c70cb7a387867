"""Calls of the sandbox's gRPC server with something around them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio

# Takes the context that the call is carried out in.
Answer = Callable[[Any], Awaitable[Any]]


class WrappedCalls(grpc.aio.ServerInterceptor):
    """Lets its subclass answer each call, by itself or with what the server answers."""

    @abstractmethod
    async def respond(self, path: str, request: Any, context: Any, answer: Answer) -> Any:
        """Return the answer of one call: a message, or bytes to be sent as they are.

        `path` is the method in full, `answer` carries the call out in a context, mostly in the call's own.
        """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of one call, with what the subclass does around it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        # Every method of the sandbox is a unary one.
        inner: Any = handler.unary_unary
        serialized = cast("Callable[[Any], bytes]", handler.response_serializer)
        path = cast("Any", handler_call_details).method

        async def respond(request: Any, context: Any) -> Any:
            return await self.respond(path, request, context, lambda within: inner(request, within))

        return grpc.unary_unary_rpc_method_handler(
            cast("Any", respond),
            request_deserializer=handler.request_deserializer,
            response_serializer=lambda message: (
                message if isinstance(message, bytes) else serialized(message)
            ),
        )
