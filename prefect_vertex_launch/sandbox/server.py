"""Both servers of the sandbox on one event loop: W&B's backend, and Vertex AI over REST and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from starlette.responses import Response
from starlette.types import ASGIApp

from prefect_vertex_launch.sandbox.faults.app import faults_app, faults_refusal
from prefect_vertex_launch.sandbox.faults.grpc_wire import FaultyCalls
from prefect_vertex_launch.sandbox.faults.http_wire import HttpFace, faulty_app
from prefect_vertex_launch.sandbox.faults.kinds import What
from prefect_vertex_launch.sandbox.faults.registry import Faults, Switch
from prefect_vertex_launch.sandbox.google.access import GoogleAccess
from prefect_vertex_launch.sandbox.google.app import (
    container_variables,
    google_app,
    token_uri,
    vertex_refusal,
)
from prefect_vertex_launch.sandbox.google.token_check import CallsWithToken
from prefect_vertex_launch.sandbox.images import IMAGES
from prefect_vertex_launch.sandbox.local_requests import local_app
from prefect_vertex_launch.sandbox.private_files import write_private
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.request_log import LoggedCalls, RequestLog, logged_app
from prefect_vertex_launch.sandbox.signed_in import signed_in_app
from prefect_vertex_launch.sandbox.vertex.backend import VertexBackend
from prefect_vertex_launch.sandbox.vertex.job_server import JobServer
from prefect_vertex_launch.sandbox.vertex.rest import vertex_app, vertex_face
from prefect_vertex_launch.sandbox.wandb.app import wandb_app, wandb_face
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.sandbox.web_server import WebServer

# The project that the service account key is of; the job service has jobs of any.
PROJECT = "sandbox-project"


@dataclass(kw_only=True, repr=False, eq=False)
class Sandbox:
    """W&B's backend and Vertex AI's job service, up while the context is open.

    Raises StartRefusal if the state file or the request log cannot be had or, on entering, if a port is
    taken.

    Attributes:
        wandb_port: Port of W&B's backend; 0 picks a free one, here and below.
        vertex_rest_port: Port of the job service over REST.
        vertex_grpc_port: Port of the job service over gRPC.
        google_port: Port of Google's other services: tokens, and what jobs find of Google.
        faults_port: Port where the faults can be switched; None for nowhere.
        state: SQLite file that everything is kept in and taken up from; None to keep nothing.
        entity: The W&B entity there is.
        api_key: The key that W&B's backend and the switches of the faults accept; empty to have one made,
            which `state` keeps.
        images: Entrypoints by container image, beside those of the images that there are anyway.
        lease_seconds: How long a popped item waits for its ack.
        queued_seconds: How long a job is QUEUED.
        pending_seconds: How long a job is PENDING after that.
        is_manual: Whether jobs run nowhere and are moved by `vertex.set_state` only.
        workdir: Directory for the files of jobs; None for one beside `state`, or a temporary one.
        request_log: File that gets a line for every request and its answer.
        secrets: What jobs find in Secret Manager, by `projects/…/secrets/…/versions/N`; they may not
            read one that is None.
        buckets: The directories that Python packages come from, by bucket.
    """

    wandb_port: int = 0
    vertex_rest_port: int = 0
    vertex_grpc_port: int = 0
    google_port: int = 0
    faults_port: int | None = None
    state: Path | None = None
    entity: str = "sandbox"
    api_key: str = ""
    images: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    lease_seconds: float = 60.0
    queued_seconds: float = 0.2
    pending_seconds: float = 0.3
    is_manual: bool = False
    workdir: Path | None = None
    request_log: Path | None = None
    secrets: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    buckets: Mapping[str, Path] = field(default_factory=dict[str, Path])

    def __post_init__(self) -> None:
        self.wandb_url = self.vertex_rest_url = self.vertex_grpc_url = self.google_url = self.faults_url = ""
        # What goes wrong: nothing at first.
        self.faults = Faults(on=self._switched_on, off=self._switched_off)
        self._records = Records(self.state)
        self.google = GoogleAccess(self._records)
        self.api_key = self.api_key or self._records.secret("api-key", _new_api_key)
        self._stack = contextlib.AsyncExitStack()
        self._web_servers: list[WebServer] = []
        self._servers: dict[str, list[WebServer | JobServer]] = {"wandb": [], "vertex": []}
        self._outages: set[asyncio.Task[None]] = set()
        self._settling = asyncio.Lock()
        self._log = RequestLog(self.request_log) if self.request_log is not None else None
        if self._log is not None:
            self._stack.callback(self._log.close)
        self.wandb = WandbBackend(
            self._records,
            entity=self.entity,
            api_key=self.api_key,
            lease_seconds=self.lease_seconds,
            faults=self.faults,
        )
        self.vertex = VertexBackend(
            self._records,
            workdir=self.workdir or self._own_workdir(),
            images={**IMAGES, **self.images},
            queued_seconds=self.queued_seconds,
            pending_seconds=self.pending_seconds,
            is_manual=self.is_manual,
            buckets=self.buckets,
            faults=self.faults,
        )

    def service_account_info(self, project: str) -> dict[str, str]:
        """Return the JSON of a service account key, with which Google's clients get in here."""
        return self.google.service_account_info(project, token_uri(self.google_url))

    def _own_workdir(self) -> Path:
        if self.state is not None:
            return self.state.with_name(f"{self.state.name}.jobs")
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vertex-sandbox-")))

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _open(self) -> None:
        self._stack.callback(self._records.close)
        google = await self._serve("google", google_app(self.google, self.secrets), self.google_port)
        self.google_url = google.url
        self.vertex.container_variables.update(container_variables(google.url, self.google))
        await self.vertex.start()
        self._stack.push_async_callback(self.vertex.aclose)
        self.vertex_grpc_url = await self._serve_jobs(self.vertex_grpc_port)
        vertex = await self._serve(
            "vertex-rest",
            vertex_app(self.vertex),
            self.vertex_rest_port,
            vertex_face(self.vertex),
            refusal=partial(vertex_refusal, self.google),
        )
        self.vertex_rest_url = vertex.url
        wandb = await self._serve("wandb", wandb_app(self.wandb), self.wandb_port, wandb_face())
        self.wandb_url = self.wandb.base_url = wandb.url
        if self.faults_port is not None:
            refusal = partial(faults_refusal, self.api_key)
            switches = await self._serve("faults", faults_app(self.faults), self.faults_port, refusal=refusal)
            self.faults_url = f"{switches.url}/faults"

    async def _serve(
        self,
        name: str,
        app: ASGIApp,
        port: int,
        face: HttpFace | None = None,
        *,
        refusal: Callable[[str], Response | None] | None = None,
    ) -> WebServer:
        """Serve an app until the end. The request log calls it `name`; with a `face` it has faults.

        Whom `refusal` refuses by the Authorization header is not answered, and has no faults.
        """
        server = WebServer(app, port)
        if face is not None:
            server.app = faulty_app(app, face, self.faults, server.cut)
            self._servers[face.server].append(server)
        if refusal is not None:
            server.app = signed_in_app(server.app, refusal)
        # The log has what was refused, too.
        server.app = local_app(server.app)
        if self._log is not None:
            server.app = logged_app(server.app, name, self._log)
        self._stack.push_async_callback(server.aclose)
        await server.start()
        self._web_servers.append(server)
        return server

    async def _serve_jobs(self, port: int) -> str:
        """Serve the job service over gRPC until the end, and return its URL."""
        log = [LoggedCalls("vertex-grpc", self._log)] if self._log is not None else []
        faults = FaultyCalls(self.faults, self.vertex.calls)
        server = JobServer(self.vertex, port, [*log, CallsWithToken(self.google), faults])
        self._stack.push_async_callback(server.aclose)
        await server.start()
        self._servers["vertex"].append(server)
        return server.url

    async def _switched_on(self, switch: Switch) -> None:
        if switch.fault.what is not What.DOWN:
            return
        await self._settle(switch.fault.server)
        if switch.fault.seconds is not None:
            outage = asyncio.create_task(self._end(switch, switch.fault.seconds))
            self._outages.add(outage)
            outage.add_done_callback(self._outages.discard)

    async def _end(self, switch: Switch, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.faults.remove(switch)

    async def _switched_off(self, switch: Switch) -> None:
        self.vertex.let_go(switch)
        if switch.fault.what is What.DOWN:
            await self._settle(switch.fault.server)

    async def _settle(self, name: str) -> None:
        """Take a server down or bring it up, whichever the faults ask for that are on now."""
        # Going down and coming up take a while, in which other faults may be switched.
        async with self._settling:
            is_down = any(
                switch.fault.server == name and switch.fault.what is What.DOWN for switch in self.faults
            )
            for server in self._servers[name]:
                await (server.take_down() if is_down else server.bring_up())

    async def __aexit__(self, *_: object) -> None:
        for outage in self._outages:
            outage.cancel()
        self.faults.abandon()
        # All at once: each of them takes a while to end.
        for server in self._web_servers:
            server.ask_to_stop()
        await self._stack.aclose()


def _new_api_key() -> str:
    # W&B's clients accept keys of at least 40 characters.
    return f"sandbox_{secrets.token_hex(20)}"


async def serve(make_sandbox: Callable[[], Sandbox]) -> None:
    """Serve until SIGTERM or SIGINT; print one JSON line with the URLs when ready.

    On SIGUSR1 another line says how many calls Vertex AI has had so far, by their RPC's name.
    Raises StartRefusal, as `Sandbox` does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="vertex-sandbox-") as directory:
        async with make_sandbox() as sandbox:
            loop.add_signal_handler(signal.SIGUSR1, lambda: _say({"vertex_calls": sandbox.vertex.calls}))
            state = sandbox.state or Path(directory, "sandbox")
            key_file = state.with_name(f"{state.name}.google.json").absolute()
            write_private(key_file, json.dumps(sandbox.service_account_info(PROJECT)))
            _say(_ready(sandbox, key_file))
            await stop.wait()


def _ready(sandbox: Sandbox, key_file: Path) -> dict[str, object]:
    return {
        "wandb_url": sandbox.wandb_url,
        "vertex_rest_url": sandbox.vertex_rest_url,
        "vertex_grpc_url": sandbox.vertex_grpc_url,
        "faults_url": sandbox.faults_url,
        "entity": sandbox.entity,
        "api_key": sandbox.api_key,
        "google_credentials": str(key_file),
        "access_token": sandbox.google.new_token(),
        "pid": os.getpid(),
    }


def _say(line: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
