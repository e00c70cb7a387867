"""Faults on the wire of an HTTP server of the sandbox."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefect_vertex_launch.sandbox.faults.kinds import WIRE, Server, What
from prefect_vertex_launch.sandbox.faults.registry import Fault, Faults, Switch
from prefect_vertex_launch.sandbox.request_texts import texts_of, texts_of_body

_GARBAGE: Final = b"<html><head><title>502 Bad Gateway</title></head><body>\xff\xfe"
# A body behind one of these would be the beginning of the next answer.
_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


@dataclass(frozen=True, slots=True)
class HttpFace:
    """How a server is spoken to over HTTP.

    `operations` gives the names that a request goes by, `refusal` status, headers and body of the answer
    for a fault. `calls` counts those that the server itself never sees.
    """

    server: Server
    operations: Callable[[Scope, bytes], frozenset[str]]
    refusal: Callable[[Fault], tuple[int, dict[str, str], bytes]]
    calls: Counter[str] = field(default_factory=Counter[str])


def faulty_app(app: ASGIApp, face: HttpFace, faults: Faults, cut: Callable[[Scope], None]) -> ASGIApp:
    """Return an ASGI app that answers as `app` does, but for the faults that are on.

    `cut` ends the connection of a request at once.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not faults.are_on(face.server):
            await app(scope, receive, send)
            return
        request = await _request(receive)
        if request[-1]["type"] == "http.disconnect":
            await app(scope, _again(request, receive), send)
            return
        body = b"".join(message.get("body", b"") for message in request)
        operations = face.operations(scope, body)
        switch = faults.take(face.server, WIRE, operations, _texts(scope, body))
        pass_by = partial(face.calls.update, operations)
        call = _Call(app, scope, request, receive, send, cut=partial(cut, scope), pass_by=pass_by)
        if switch is None:
            await call.carry_out()
        elif switch.fault.what is What.ANSWER:
            pass_by()
            await call.refuse(*face.refusal(switch.fault))
        else:
            await _strike(call, switch)

    return answer


def _texts(scope: Scope, body: bytes) -> list[str]:
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return [scope["path"], *texts_of(query), *texts_of_body(body)]


async def _strike(call: _Call, switch: Switch) -> None:
    what = switch.fault.what
    if what is What.SLOW:
        if await call.outlasts(switch):
            await call.carry_out()
        else:
            call.pass_by()
        return
    if what in {What.CUT_BEFORE, What.HANG}:
        call.pass_by()
    elif what is What.CUT_MIDWAY:
        await call.begin_to_answer()
    else:
        await call.answer_of_the_app()
    if what is What.GARBAGE:
        await call.refuse(200, {"content-type": "text/html"}, _GARBAGE)
        return
    if what in {What.HANG, What.HANG_AFTER}:
        await call.outlasts(switch)
    await call.break_off()


async def paused(switch: Switch) -> None:
    """Wait for as long as a fault says, or until it is switched off."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(switch.is_off.wait(), switch.fault.seconds)


@dataclass(slots=True)
class _Call:
    """A request that has been read, `receive` tells of its client's end.

    `cut` ends its connection, `pass_by` counts it as one that the server never sees.
    """

    app: ASGIApp
    scope: Scope
    request: list[Message]
    receive: Receive
    send: Send
    cut: Callable[[], None]
    pass_by: Callable[[], None]

    async def carry_out(self) -> None:
        await self.app(self.scope, _again(self.request, self.receive), self.send)

    async def refuse(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if status in _WITHOUT_BODY:
            headers, body = {}, b""
        else:
            headers = {"content-length": str(len(body)), **headers}
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})

    async def answer_of_the_app(self) -> list[Message]:
        """Carry the call out, and return what was to be sent."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self.app(self.scope, _again(self.request, self.receive), keep)
        return messages

    async def begin_to_answer(self) -> None:
        """Carry the call out, and send the first half of the answer."""
        start, *rest = await self.answer_of_the_app()
        if self.scope["method"] == "HEAD":  # its answer is over with the header
            return
        body = b"".join(message.get("body", b"") for message in rest)
        # Half of nothing would be the whole answer: a byte is announced that never comes.
        await self.send(start if body else {**start, "headers": [(b"content-length", b"1")]})
        await self.send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})

    async def break_off(self) -> None:
        """Break the connection; returning before it is known to be broken would be an answer."""
        self.cut()
        await self._left()

    async def outlasts(self, switch: Switch) -> bool:
        """Wait for as long as a fault says, until it is switched off or the client gives up.

        Tell whether the client is still there.
        """
        left, over = asyncio.ensure_future(self._left()), asyncio.ensure_future(paused(switch))
        try:
            await asyncio.wait((left, over), return_when=asyncio.FIRST_COMPLETED)
            return not left.done()
        finally:
            left.cancel()
            over.cancel()

    async def _left(self) -> bool:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        return True


async def _request(receive: Receive) -> list[Message]:
    """Return all that a client sends, to its end or until the client leaves."""
    messages: list[Message] = []
    while True:
        messages.append(message := await receive())
        if not message.get("more_body"):
            return messages


def _again(request: Iterable[Message], receive: Receive) -> Receive:
    """Return a `receive` that gives a request, which has been read already, once more."""
    left = iter(request)

    async def receive_again() -> Message:
        for message in left:
            return message
        return await receive()

    return receive_again
