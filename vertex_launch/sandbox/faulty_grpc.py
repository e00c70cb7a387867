"""Faults on the wire of the sandbox's gRPC server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from vertex_launch.sandbox.faults import WIRE, Fault, Faults, Switch, What
from vertex_launch.sandbox.faulty_http import paused
from vertex_launch.sandbox.vertex_refusal import refused_with

# gRPC has no door to the connection of a call. A client sees the same for one that is reset.
_CUT: Final = (grpc.StatusCode.UNAVAILABLE, "Socket closed")
_DETAILS: Final = "grpc-status-details-bin"
# A field with a wire type that there is not.
_GARBAGE: Final = b"\xff\xff\xff\xff"


class Garbage:
    """Stands for an answer that is no message."""


class FaultyCalls(grpc.aio.ServerInterceptor):
    """Lets calls go wrong; `calls` counts those that the backend never sees."""

    def __init__(self, faults: Faults, calls: Counter[str]) -> None:
        self._faults = faults
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of one call, with the faults that are on."""
        handler = await continuation(handler_call_details)
        if handler is None or not self._faults.are_on("vertex"):
            return handler
        # Every method of the sandbox is a unary one.
        answer: Any = handler.unary_unary
        serialized = cast("Callable[[Any], bytes]", handler.response_serializer)
        operation = cast("Any", handler_call_details).method.rpartition("/")[2]

        async def respond(request: Any, context: Any) -> Any:
            switch = self._faults.take("vertex", WIRE, {operation}, str(request))
            if switch is None:
                return await answer(request, context)
            if switch.fault.what in {What.ANSWER, What.CUT_BEFORE, What.HANG}:
                self._calls[operation] += 1
            return await _struck(switch, lambda: answer(request, context), context)

        return grpc.unary_unary_rpc_method_handler(
            cast("Any", respond),
            request_deserializer=handler.request_deserializer,
            response_serializer=lambda message: (
                _GARBAGE if isinstance(message, Garbage) else serialized(message)
            ),
        )


async def _struck(switch: Switch, answer: Callable[[], Awaitable[Message]], context: Any) -> Any:
    what = switch.fault.what
    if what is What.ANSWER:
        await _refuse(switch.fault, context)
    elif what is What.SLOW:
        await paused(switch)
        return await answer()
    elif what is What.GARBAGE:
        await answer()
        return Garbage()
    elif what is What.HANG:
        await switch.is_off.wait()
    elif what is not What.CUT_BEFORE:
        await answer()
    return await context.abort(*_CUT)


async def _refuse(fault: Fault, context: Any) -> None:
    refusal = refused_with(fault.message, http_status=fault.status, code=fault.code)
    details: tuple[tuple[str, bytes], ...] = ()
    if fault.retry_after_seconds is not None:
        pause = PackedMessage()
        pause.Pack(RetryInfo(retry_delay=Duration(seconds=fault.retry_after_seconds)))
        status = Status(code=refusal.status.value[0], message=refusal.message, details=[pause])
        details = ((_DETAILS, status.SerializeToString()),)
    await context.abort(refusal.status, refusal.message, details)
