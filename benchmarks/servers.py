"""The servers of a scenario: a Prefect server on SQLite and the sandbox, for it alone.

Prefect reads its settings when it is imported, so nothing here imports it before `prepare` has set the
environment of this process; the port stays the same for all scenarios, the database is a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Measured, program
from prefect_vertex_launch.cli.demo.servers import (
    START_SECONDS,
    SandboxAddress,
    free_port,
    prefect_server,
    private_environment,
    until_healthy,
)

ENTITY = "bench"
# What docs/deploying.md recommends for a Prefect server of one's own.
RECOMMENDED = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
# Longer than any scenario: a job waits at Vertex AI and needs no process here.
QUEUED_SECONDS = 86_400


@dataclass(eq=False)
class Servers:
    """Both servers, and where they keep their files."""

    home: Path
    prefect: Measured
    sandbox: Measured
    address: SandboxAddress

    async def vertex_calls(self) -> dict[str, int]:
        """Return how many calls the sandbox's Vertex AI has had, by method, as it counts them itself."""
        assert self.sandbox.process.stdout is not None
        self.sandbox.process.send_signal(signal.SIGUSR1)
        line = await asyncio.wait_for(self.sandbox.process.stdout.readline(), START_SECONDS)
        return json.loads(line)["vertex_calls"]


def prepare(home: Path, settings: Mapping[str, str], *, on_file: bool) -> int:
    """Give this process and all that it starts a private environment; return Prefect's port.

    `settings` are more variables of it, for what the Prefect server can be told; they win over the
    recommended ones. With `on_file` the database is a file, as that of `prefect server start` is, and
    not in memory, as the demo's is.
    """
    port = free_port()
    environment = {**private_environment(home, port, os.environ), **RECOMMENDED, **settings}
    if on_file and _DATABASE not in settings:
        del environment[_DATABASE]
    os.environ.clear()
    os.environ.update(environment)
    return port


def database() -> str:
    """Return what the Prefect server of this environment keeps its data in."""
    url = os.environ.get(_DATABASE, "")
    if not url:
        return "SQLite in a file"
    return "SQLite in memory" if url.endswith(":memory:") else url.partition(":")[0]


@contextlib.asynccontextmanager
async def servers(port: int) -> AsyncIterator[Servers]:
    """Start both servers with nothing in them; everything is gone with the body."""
    with tempfile.TemporaryDirectory(prefix="vertex-launch-bench-", ignore_cleanup_errors=True) as directory:
        home, before = Path(directory), os.environ["PREFECT_HOME"]
        os.environ["PREFECT_HOME"] = str(home / "prefect")
        try:
            async with prefect_server(home, port) as server, _sandbox(home) as (sandbox, address):
                await until_healthy(server, home, port)
                yield Servers(home, Measured(server, 0.0, home / "prefect.log"), sandbox, address)
        finally:
            os.environ["PREFECT_HOME"] = before


@contextlib.asynccontextmanager
async def _sandbox(home: Path) -> AsyncIterator[tuple[Measured, SandboxAddress]]:
    arguments = (
        "prefect_vertex_launch.cli.main",
        "sandbox",
        "up",
        "--entity",
        ENTITY,
        "--queued-seconds",
        str(QUEUED_SECONDS),
    )
    async with program(arguments, home / "sandbox.log", stdout=asyncio.subprocess.PIPE) as sandbox:
        assert sandbox.process.stdout is not None
        line = await asyncio.wait_for(sandbox.process.stdout.readline(), START_SECONDS)
        if not line:
            await sandbox.process.wait()
            sandbox.require_running()
        said = json.loads(line)
        yield sandbox, SandboxAddress(**{name: said[name] for name in SandboxAddress.__slots__})
