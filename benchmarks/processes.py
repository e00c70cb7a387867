"""The processes that are measured: started apart, looked at from outside, ended by their group."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from prefect_vertex_launch.cli.demo import servers

STOP_SECONDS = 10.0
SAMPLE_SECONDS = 0.5
MEGABYTE = 1_000_000


@dataclass(eq=False)
class Measured:
    """A running program; `started` is the moment before it was started, by the wall clock."""

    process: asyncio.subprocess.Process
    started: float
    log: Path

    def cpu_seconds(self) -> float:
        """Return the CPU time so far, user and system, of the program and its living children."""
        return sum(_cpu(process) for process in self._family())

    def memory_mb(self) -> float:
        """Return the resident memory of the program and its children, in MB."""
        return sum(_memory(process) for process in self._family()) / MEGABYTE

    def threads(self) -> int:
        """Return how many threads the program has."""
        return psutil.Process(self.process.pid).num_threads()

    def require_running(self) -> None:
        """Raise RuntimeError with the program's last words if it has ended."""
        if self.process.returncode is not None:
            last_words = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.log.stem} ended with {self.process.returncode}:\n{last_words}")

    def _family(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]


@contextlib.asynccontextmanager
async def program(
    arguments: Sequence[str], log: Path, *, stdout: int | None = None
) -> AsyncIterator[Measured]:
    """Run `python -m …` in a process group of its own, which ends with the body."""
    started = time.time()
    command = (sys.executable, "-m", *arguments)
    async with servers.program(command, log, stop_seconds=STOP_SECONDS, stdout=stdout) as process:
        yield Measured(process, started, log)


@contextlib.asynccontextmanager
async def peak_memory(measured: Measured) -> AsyncIterator[list[float]]:
    """Sample the program's memory, in MB, while the body runs; the samples are what is yielded."""
    samples: list[float] = [measured.memory_mb()]

    async def keep_sampling() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            with contextlib.suppress(psutil.NoSuchProcess):
                samples.append(measured.memory_mb())

    sampling = asyncio.create_task(keep_sampling())
    try:
        yield samples
    finally:
        sampling.cancel()


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.memory_info().rss
    return 0
