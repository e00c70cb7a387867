"""The programs that the demo starts: each ends with it, and leaves nothing outside of its directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from prefect_vertex_launch.cli.errors import NOT_READY, CommandError

START_SECONDS = 90.0
# The sandbox ends its jobs first; the Prefect server has nothing that anybody needs again.
SANDBOX_STOP_SECONDS = 20.0
PREFECT_STOP_SECONDS = 2.0
_LAST_LINES = 15
# Below those that systems give to whoever asks for any, which are also those of outgoing connections.
_PORTS = range(12_000, 30_000)


@dataclass(frozen=True, slots=True)
class SandboxAddress:
    """Where the sandbox is, as `vertex-launch sandbox up` prints it."""

    wandb_url: str
    vertex_rest_url: str
    vertex_grpc_url: str
    entity: str
    api_key: str
    google_credentials: str

    def service_account_info(self) -> dict[str, str]:
        """Return the service account key with which Google's clients get in there."""
        return json.loads(Path(self.google_credentials).read_text())


def private_environment(home: Path, prefect_port: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Prefect and wandb know this directory and nothing of the user's.

    It holds for this process, once set before Prefect is imported, and for every program it starts.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith(("PREFECT_", "WANDB_"))}
    return kept | {
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        # The flows' log goes to the Prefect UI; the terminal belongs to the table.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        # In memory: on a file, Prefect now and then stops for a minute (docs/deploying.md).
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///:memory:",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "WANDB_CONFIG_DIR": str(home / "wandb-config"),
        "WANDB_CACHE_DIR": str(home / "wandb-cache"),
        "WANDB_DATA_DIR": str(home / "wandb-data"),
        "WANDB_DIR": str(home),
        "WANDB_SILENT": "true",
    }


def free_port() -> int:
    """Return a port that nobody uses, and that the system gives to nobody before it is listened on."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.asynccontextmanager
async def prefect_server(home: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a Prefect server with a database of its own; `until_healthy` waits for it."""
    application = ("--factory", "prefect.server.api.server:create_app", "--log-level", "error")
    command = (sys.executable, "-m", "uvicorn", *application, "--host", "127.0.0.1", "--port", str(port))
    async with program(command, home / "prefect.log", stop_seconds=PREFECT_STOP_SECONDS) as process:
        yield process


async def until_healthy(server: asyncio.subprocess.Process, home: Path, port: int) -> None:
    """Wait for the Prefect server. Raises CommandError, with its last words, when it does not come up."""
    deadline = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api", timeout=5) as client:
        while server.returncode is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/health")).status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(0.1)
    raise _did_not_start("the Prefect server", home / "prefect.log")


@contextlib.asynccontextmanager
async def sandbox(home: Path, entity: str) -> AsyncIterator[SandboxAddress]:
    """Run `vertex-launch sandbox up` and yield where it is. Raises CommandError when it does not start."""
    command = (sys.executable, "-m", "prefect_vertex_launch.cli.main", "sandbox", "up", "--entity", entity)
    log = home / "sandbox.log"
    async with program(
        command, log, stop_seconds=SANDBOX_STOP_SECONDS, stdout=asyncio.subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        except TimeoutError:
            line = b""
        if not line:
            raise _did_not_start("the sandbox", log)
        said: dict[str, Any] = json.loads(line)
        yield SandboxAddress(**{name: said[name] for name in SandboxAddress.__slots__})


@contextlib.asynccontextmanager
async def program(
    command: Sequence[str], log: Path, *, stop_seconds: float, stdout: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program in a process group of its own, which ends with the body."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await _end(process, stop_seconds)


async def _end(process: asyncio.subprocess.Process, stop_seconds: float) -> None:
    """End the group. It was asked even if this is cut short, and is made to if it takes its time."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), stop_seconds)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _did_not_start(what: str, log: Path) -> CommandError:
    last_words = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
    return CommandError(
        f"{what} did not start; it says:\n{last_words}",
        "an installation that does not match requirements/runtime.txt is the usual cause "
        "(docs/dependencies.md): `make clean demo` sets it up anew",
        code=NOT_READY,
    )
