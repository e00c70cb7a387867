"""A served W&B sandbox and the real wandb clients that are let loose on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn

from prefect_vertex_launch.sandbox.wandb.app import wandb_app
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend

API_KEY = "0123456789abcdef" * 3
_CLIENT = """
import json, sys
answers, sys.stdout = sys.stdout, sys.stderr
import wandb
from wandb.sdk.launch.api import LaunchApi
names = {"wandb": wandb, "api": wandb.Api(), "launch_api": LaunchApi()}
for line in sys.stdin:
    names["result"] = None
    try:
        exec(json.loads(line), names)
        answer = json.dumps({"result": names["result"]})
    except Exception as error:
        answer = json.dumps({"error": f"{type(error).__name__}: {error}"})
    print(answer, file=answers, flush=True)
"""


class MovableClock:
    """Wall clock time plus what a test has added to it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


@dataclass(frozen=True)
class Finished:
    """How a process ended, with stdout and stderr as one text."""

    exit_code: int
    output: str


class WandbSandbox:
    """A served backend and the environment in which real clients find it."""

    def __init__(self, backend: WandbBackend, clock: MovableClock, folder: Path) -> None:
        self.backend = backend
        self.clock = clock
        self.folder = folder
        self.url = backend.base_url

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        own = {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": API_KEY,
            "WANDB_DIR": str(self.folder),
            "WANDB_CONFIG_DIR": str(self.folder / "config"),
            "WANDB_CACHE_DIR": str(self.folder / "cache"),
            "WANDB_DATA_DIR": str(self.folder / "data"),
            "HOME": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        }
        return {**kept, **own, **extra}

    async def start(self, *command: str, **extra: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command,
            env=self.environment(**extra),
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def run(self, *command: str, **extra: str) -> Finished:
        process = await self.start(*command, **extra)
        output, _ = await process.communicate()
        return Finished(process.returncode or 0, output.decode())

    async def wandb(self, *arguments: str, **extra: str) -> Finished:
        return await self.run(sys.executable, "-m", "wandb", *arguments, **extra)

    async def python(self, code: str, **extra: str) -> Finished:
        return await self.run(sys.executable, "-c", code, **extra)


class ClientError(Exception):
    """What the real client raised, as text."""


class WandbClient:
    """A process in which `wandb`, `api` (wandb.Api()) and `launch_api` (LaunchApi()) are at hand."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, sandbox: WandbSandbox) -> WandbClient:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _CLIENT,
            env=sandbox.environment(WANDB_SILENT="true"),
            cwd=sandbox.folder,
            limit=1 << 24,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return cls(process)

    async def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()

    async def run(self, code: str) -> Any:
        """Run statements there and return what they left in `result`."""
        assert self._process.stdin
        assert self._process.stdout
        async with self._turn:
            self._process.stdin.write(json.dumps(code).encode() + b"\n")
            answer = json.loads(await self._process.stdout.readline())
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["result"]


@contextlib.asynccontextmanager
async def served(backend: WandbBackend) -> AsyncIterator[None]:
    """Serve a backend on a free port of 127.0.0.1."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    backend.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(wandb_app(backend), lifespan="off", log_level="warning"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        # Asked to end, it would take a fifth of a second, after each test that has one of its own.
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        listener.close()
