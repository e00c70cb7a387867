"""Agents as processes: started quickly, killed, frozen and waited for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
ROOT = Path(__file__).parents[2]


@dataclass(eq=False)
class AgentProcess:
    """One agent; `point` is where it is to kill itself, `ended` has its exit code, negative for a signal.

    `is_asked_to_end` says that it got a SIGTERM.
    """

    number: int
    pid: int
    log: Path
    point: tuple[str, str, int] | None
    ended: asyncio.Future[int] = field(repr=False)
    is_asked_to_end: bool = False

    @property
    def is_alive(self) -> bool:
        return not self.ended.done()

    @property
    def serves(self) -> bool:
        """Whether it has come to serve its queue."""
        return self.log.exists() and " serves " in self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Signal the process, unless it has ended."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.send(signal.SIGKILL)
        await self.ended


class Nursery:
    """Starts agents by `tests.chaos.agent_process`; `settings` are constants that they find changed.

    `faults` is where they switch on the sandbox's faults of which they are to die, and the key for it.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        logs: Path,
        settings: Mapping[str, Any],
        faults: Sequence[str],
    ) -> None:
        self._process = process
        self._logs = logs
        self._settings = settings
        self._faults = faults
        self._starting: asyncio.Queue[int] = asyncio.Queue()
        self._ended: dict[int, asyncio.Future[int]] = {}
        self.agents: list[AgentProcess] = []

    async def start(
        self, arguments: Sequence[str], point: tuple[str, str, int] | None = None
    ) -> AgentProcess:
        """Start `vertex-launch` with these arguments."""
        number = len(self.agents) + 1
        log = self._logs / f"agent-{number}.log"
        request = {
            "arguments": [*arguments],
            "log": str(log),
            "settings": self._settings,
            "point": point,
            "faults": [*self._faults],
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(START_SECONDS):
            pid = await self._starting.get()
        agent = AgentProcess(number, pid, log, point, self._ended[pid])
        self.agents.append(agent)
        return agent

    @property
    def alive(self) -> list[AgentProcess]:
        return [agent for agent in self.agents if agent.is_alive]

    async def listen(self) -> None:
        """Take what the process says, until it ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "started" in said:
                self._ended[said["started"]] = asyncio.get_running_loop().create_future()
                self._starting.put_nowait(said["started"])
            elif "ended" in said:
                self._ended.pop(said["ended"]).set_result(said["code"])


@contextlib.asynccontextmanager
async def nursery(
    logs: Path, environment: Mapping[str, str], settings: Mapping[str, Any], faults: Sequence[str]
) -> AsyncIterator[Nursery]:
    """Agents that end with the body, however it ends; each has a log in `logs`."""
    with (logs / "nursery.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.agent_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=dict(environment),
        )
    assert process.stdin is not None
    assert process.stdout is not None
    listening: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(START_SECONDS):
            if b"ready" not in await process.stdout.readline():
                raise RuntimeError((logs / "nursery.log").read_text())
        started = Nursery(process, logs, settings, faults)
        listening = asyncio.create_task(started.listen())
        yield started
    finally:
        process.stdin.close()
        await process.wait()
        if listening is not None:
            await listening
