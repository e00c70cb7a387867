"""Prefect's own server, with a share of what its clients ask it going wrong on the way.

`uvicorn --factory tests.chaos.faulty_prefect:create_app`; a PUT of {"share": 0.05, "seed": 1} to /going-wrong
says how much of it, and a GET how many calls there were since and how many went wrong. Whoever does not speak
as Prefect's client does is spared: those who look on.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from prefect.server.api.server import create_app as create_prefect_app
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SWITCH = "/going-wrong"
KINDS = ("503", "cut before", "cut after", "page")


class FaultyApp:
    """Answers as `app` does, but for a share of the calls: refused, their connection broken, or a page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._share = 0.0
        self._random = Random()
        self._calls = 0
        self._hits = dict.fromkeys(KINDS, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == SWITCH:
            await self._switch(scope, receive, send)
        elif (kind := self._drawn(scope)) is None:
            await self._app(scope, receive, send)
        elif kind == "503":
            await JSONResponse({"detail": "Service Unavailable"}, 503)(scope, receive, send)
        elif kind == "page":
            await self._app(scope, receive, _unheard)
            await HTMLResponse("<html>Please log in</html>")(scope, receive, send)
        else:
            if kind == "cut after":
                await self._app(scope, receive, _unheard)
            await _cut(receive)

    def _drawn(self, scope: Scope) -> str | None:
        if scope["type"] != "http" or not self._share or not _is_of_a_client(scope):
            return None
        self._calls += 1
        if self._random.random() >= self._share:
            return None
        kind = self._random.choice(KINDS)
        self._hits[kind] += 1
        return kind

    async def _switch(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method == "PUT":
            wanted: dict[str, Any] = json.loads(await request.body())
            self._share = wanted["share"]
            self._random.seed(wanted["seed"])
        await JSONResponse({"calls": self._calls, "hits": self._hits})(scope, receive, send)


def create_app() -> ASGIApp:
    return FaultyApp(create_prefect_app())


def _is_of_a_client(scope: Scope) -> bool:
    return dict(scope["headers"]).get(b"user-agent", b"").startswith(b"prefect/")


async def _unheard(_message: Message) -> None:
    """Nobody hears the answer."""


async def _cut(receive: Receive) -> None:
    """Break the connection: uvicorn's `receive` is a method of what has it."""
    transport = receive.__self__.transport  # pyright: ignore[reportFunctionMemberAccess, reportUnknownVariableType]
    transport.abort()  # pyright: ignore[reportUnknownMemberType]
    # To return before it is known to be broken would be an answer.
    while (await receive())["type"] != "http.disconnect":
        pass
