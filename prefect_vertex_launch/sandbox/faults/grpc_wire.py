"""Faults on the wire of the sandbox's gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from prefect_vertex_launch.sandbox.faults.http_wire import paused
from prefect_vertex_launch.sandbox.faults.kinds import WIRE, What
from prefect_vertex_launch.sandbox.faults.registry import Fault, Faults, Switch
from prefect_vertex_launch.sandbox.request_texts import texts_of_message
from prefect_vertex_launch.sandbox.vertex.refusal import refused_with
from prefect_vertex_launch.sandbox.wrapped_calls import Answer, WrappedCalls

# gRPC has no door to the connection of a call. A client sees the same for one that is reset.
_CUT: Final = (grpc.StatusCode.UNAVAILABLE, "Socket closed")
_DETAILS: Final = "grpc-status-details-bin"
# A field with a wire type that there is not.
_GARBAGE: Final = b"\xff\xff\xff\xff"


class FaultyCalls(WrappedCalls):
    """Lets calls go wrong; `calls` counts those that the backend never sees."""

    def __init__(self, faults: Faults, calls: Counter[str]) -> None:
        self._faults = faults
        self._calls = calls

    async def respond(self, path: str, request: Any, context: Any, answer: Answer) -> Any:
        """Answer one call as the server does, but for the faults that are on."""
        if not self._faults.are_on("vertex"):
            return await answer(context)
        operation = path.rpartition("/")[2]
        switch = self._faults.take("vertex", WIRE, {operation}, texts_of_message(request))
        if switch is None:
            return await answer(context)
        if switch.fault.what is What.SLOW:
            await self._wait(switch, operation)
            return await answer(context)
        if switch.fault.what in {What.ANSWER, What.CUT_BEFORE, What.HANG}:
            self._calls[operation] += 1
        else:
            with contextlib.suppress(_RefusedUnheard):
                await answer(_Unheard())
        return await _struck(switch, context)

    async def _wait(self, switch: Switch, operation: str) -> None:
        try:
            await paused(switch)
        except asyncio.CancelledError:  # the client has given up
            self._calls[operation] += 1
            raise


class _RefusedUnheard(Exception):
    """A call was refused, and nobody hears of it."""


class _Unheard:
    """The context of a call whose client does not get to hear what becomes of it."""

    async def abort(self, *_: object) -> None:
        raise _RefusedUnheard


async def _struck(switch: Switch, context: Any) -> Any:
    what = switch.fault.what
    if what is What.ANSWER:
        await _refuse(switch.fault, context)
    elif what is What.GARBAGE:
        return _GARBAGE
    elif what in {What.HANG, What.HANG_AFTER}:
        await switch.is_off.wait()
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
