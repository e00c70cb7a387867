"""One ASGI app of the sandbox on a port, in this event loop; it can go away and come back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any, cast

import uvicorn
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from prefect_vertex_launch.sandbox.listener import HOST, bind

STOP_SECONDS = 2.0


class WebServer:
    """Serves `app` from `start` until `aclose`; port 0 picks one, which it keeps from then on."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.port = port
        self._server: _QuietServer | None = None
        self._serving: list[asyncio.Task[None]] = []
        self._reserved: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        """Serve. Raises StartRefusal if the port cannot be had."""
        listener = self._reserved or bind(self.port)
        self._reserved = None
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            # The one parser that everybody has: what is malformed gets one answer, whatever is installed.
            http="h11",
            log_config=None,
            access_log=False,
            lifespan="off",
            # A web page may open a WebSocket to any port; nothing here answers one.
            ws="none",
            timeout_graceful_shutdown=int(STOP_SECONDS),
        )
        server = self._server = _QuietServer(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        self._serving.append(serving)
        while not server.started:
            if serving.done():
                await serving
            await asyncio.sleep(0.005)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A client may leave in the middle of its request; nobody is there to be told.
        with contextlib.suppress(ClientDisconnect):
            await self.app(scope, receive, send)

    async def take_down(self) -> None:
        """Refuse connections and break those there are; the port stays this server's."""
        server, self._server = self._server, None
        if server is None:
            return
        server.should_exit = server.force_exit = True
        for listening in server.servers:
            listening.close()
        self._reserved = bind(self.port)
        for connection in list(server.server_state.connections):
            cast("Any", connection).transport.abort()

    async def bring_up(self) -> None:
        """Serve again after `take_down`."""
        if self._server is None:
            await self.start()

    def cut(self, scope: Scope) -> None:
        """Break the connection of a request, without another byte."""
        if self._server is None:
            return
        for connection in list(self._server.server_state.connections):
            if cast("Any", connection).client == scope["client"]:
                cast("Any", connection).transport.abort()

    def ask_to_stop(self) -> None:
        """Let it come to its end, which takes a while."""
        if self._server is not None:
            self._server.should_exit = True

    async def aclose(self) -> None:
        """Stop serving and let go of the port."""
        self.ask_to_stop()
        await asyncio.gather(*self._serving)
        if self._reserved is not None:
            self._reserved.close()


class _QuietServer(uvicorn.Server):
    """A server inside of somebody else's process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the process' signal handlers alone."""
        yield
