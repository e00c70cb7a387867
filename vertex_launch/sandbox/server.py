"""Both servers of the sandbox on one event loop: W&B's backend, and Vertex AI over REST and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Self

import grpc.aio
import uvicorn
from starlette.types import ASGIApp

from vertex_launch.sandbox.google_app import container_variables, google_app
from vertex_launch.sandbox.images import IMAGES
from vertex_launch.sandbox.records import Records
from vertex_launch.sandbox.request_log import LoggedCalls, RequestLog, logged_app
from vertex_launch.sandbox.start_refusal import StartRefusal
from vertex_launch.sandbox.vertex_backend import VertexBackend
from vertex_launch.sandbox.vertex_grpc import add_job_service
from vertex_launch.sandbox.vertex_rest import vertex_app
from vertex_launch.sandbox.wandb_app import wandb_app
from vertex_launch.sandbox.wandb_backend import WandbBackend

HOST = "127.0.0.1"
# W&B's clients accept keys of at least 40 characters; this one says what it is.
DEFAULT_API_KEY = "sandbox_key_that_opens_nothing_but_the_sandbox_itself"
STOP_SECONDS = 2.0


class Sandbox:
    """W&B's backend and Vertex AI's job service, up while the context is open.

    Port 0 picks a free one. With `state` everything is kept in that SQLite file and taken up again;
    without it everything is gone at the end. `images` adds to the images there are. `queued_seconds`
    and `pending_seconds` are how long a job stays in those states; with `is_manual` jobs run nowhere and
    are moved by `vertex.set_state` only. Every request and its answer become a line of `request_log`.
    `secrets` are what jobs find in Secret Manager, by `projects/…/secrets/…/versions/N`; they may not
    read one that is None. `buckets` are the directories that Python packages come from, by bucket.

    Raises StartRefusal if the state file or the request log cannot be had or, on entering, if a port is
    taken.
    """

    def __init__(
        self,
        *,
        wandb_port: int = 0,
        vertex_rest_port: int = 0,
        vertex_grpc_port: int = 0,
        state: Path | None = None,
        entity: str = "sandbox",
        api_key: str | None = None,
        lease_seconds: float = 60.0,
        queued_seconds: float = 0.2,
        pending_seconds: float = 0.3,
        is_manual: bool = False,
        images: Mapping[str, Sequence[str]] | None = None,
        workdir: Path | None = None,
        request_log: Path | None = None,
        secrets: Mapping[str, str | None] | None = None,
        buckets: Mapping[str, Path] | None = None,
    ) -> None:
        self.entity = entity
        self.api_key = api_key or DEFAULT_API_KEY
        self.wandb_url = self.vertex_rest_url = self.vertex_grpc_url = ""
        self._ports = (wandb_port, vertex_rest_port, vertex_grpc_port)
        self._records = Records(state)
        self._stack = contextlib.AsyncExitStack()
        self._servers: list[uvicorn.Server] = []
        self._log = RequestLog(request_log) if request_log is not None else None
        if self._log is not None:
            self._stack.callback(self._log.close)
        if workdir is None and state is not None:
            workdir = state.with_name(f"{state.name}.jobs")
        if workdir is None:
            workdir = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vertex-sandbox-")))
        self.wandb = WandbBackend(
            self._records, entity=entity, api_key=self.api_key, lease_seconds=lease_seconds
        )
        self.vertex = VertexBackend(
            self._records,
            workdir=workdir,
            images={**IMAGES, **(images or {})},
            queued_seconds=queued_seconds,
            pending_seconds=pending_seconds,
            is_manual=is_manual,
            buckets=buckets,
        )
        self.secrets: dict[str, str | None] = dict(secrets or {})

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _open(self) -> None:
        wandb_port, rest_port, grpc_port = self._ports
        self._stack.callback(self._records.close)
        google_url = await self._serve(google_app(self.secrets), "google", 0)
        self.vertex.container_variables = container_variables(google_url)
        await self.vertex.start()
        self._stack.push_async_callback(self.vertex.aclose)
        grpc_port = await self._stack.enter_async_context(_serving_jobs(self.vertex, grpc_port, self._log))
        self.vertex_grpc_url = f"grpc://{HOST}:{grpc_port}"
        self.vertex_rest_url = await self._serve(vertex_app(self.vertex), "vertex-rest", rest_port)
        self.wandb_url = await self._serve(wandb_app(self.wandb), "wandb", wandb_port)
        self.wandb.base_url = self.wandb_url

    async def _serve(self, app: ASGIApp, name: str, port: int) -> str:
        """Serve an app until the end and return its URL; `name` is what the request log calls it."""
        app = app if self._log is None else logged_app(app, name, self._log)
        return await self._stack.enter_async_context(_serving(app, port, self._servers))

    async def __aexit__(self, *_: object) -> None:
        # All at once: each of them takes a while to end.
        for server in self._servers:
            server.should_exit = True
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def _serving_jobs(backend: VertexBackend, port: int, log: RequestLog | None) -> AsyncGenerator[int]:
    """Serve the job service over gRPC and yield its port."""
    # Without this a second server could have the same port, and each would get some of the calls.
    interceptors = [LoggedCalls("vertex-grpc", log)] if log is not None else []
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], interceptors=interceptors)
    add_job_service(server, backend)
    # Tried beforehand: gRPC writes a line of its own to stderr when it cannot have a port, without a reason.
    _listener(port).close()
    port = server.add_insecure_port(f"{HOST}:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


@contextlib.asynccontextmanager
async def _serving(app: ASGIApp, port: int, servers: list[uvicorn.Server]) -> AsyncGenerator[str]:
    """Serve an app in this event loop, add its server to `servers` and yield its URL.

    Signals stay with whoever runs the loop.
    """
    listener = _listener(port)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=int(STOP_SECONDS)
    )
    server = _QuietServer(config)
    servers.append(server)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
            await asyncio.sleep(0.005)
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listener.close()


def _listener(port: int) -> socket.socket:
    # asyncio switches Nagle's algorithm off only where the protocol is named: every answer on a
    # connection that is kept would wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise StartRefusal(
            f"{HOST}:{port} cannot be listened on: {error.strerror}",
            "end what listens there, or choose another port; 0 picks a free one",
        ) from error
    return listener


class _QuietServer(uvicorn.Server):
    """A server inside of somebody else's process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the process' signal handlers alone."""
        yield


async def serve(
    *,
    wandb_port: int = 0,
    vertex_rest_port: int = 0,
    vertex_grpc_port: int = 0,
    state: Path | None = None,
    entity: str = "sandbox",
    api_key: str | None = None,
    images: Mapping[str, Sequence[str]] | None = None,
    lease_seconds: float = 60.0,
    queued_seconds: float = 0.2,
    pending_seconds: float = 0.3,
    request_log: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; print one JSON line with the URLs when ready.

    On SIGUSR1 another line says how many calls Vertex AI has had so far, by their RPC's name.
    Raises StartRefusal, as `Sandbox` does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Sandbox(
        wandb_port=wandb_port,
        vertex_rest_port=vertex_rest_port,
        vertex_grpc_port=vertex_grpc_port,
        state=state,
        entity=entity,
        api_key=api_key,
        images=images,
        lease_seconds=lease_seconds,
        queued_seconds=queued_seconds,
        pending_seconds=pending_seconds,
        request_log=request_log,
    ) as sandbox:
        loop.add_signal_handler(signal.SIGUSR1, lambda: _say({"vertex_calls": sandbox.vertex.calls}))
        ready = {
            "wandb_url": sandbox.wandb_url,
            "vertex_rest_url": sandbox.vertex_rest_url,
            "vertex_grpc_url": sandbox.vertex_grpc_url,
            "entity": sandbox.entity,
            "api_key": sandbox.api_key,
            "pid": os.getpid(),
        }
        _say(ready)
        await stop.wait()


def _say(line: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
