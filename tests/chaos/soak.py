"""`make soak`: thousands of items through one agent while a twentieth of all calls goes wrong.

Real processes: an agent, a Prefect server and the sandbox, whose faults are drawn from the seed. In the end
every item is audited, and the agent's memory is compared with what it was after the first quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

MAX_JOBS = 20
JOB_SECONDS = 1.0
REAL_RUNS = 4
LOOK_SECONDS = 3.0
END_SECONDS = 2700.0
FAULTY_SHARE = 0.05
MEGABYTE = 1_000_000
# Each of these gets the same share of the calls; at W&B the jobs' own calls are hit as well.
FAULTS: tuple[dict[str, Any], ...] = (
    {"what": "answer", "status": 503},
    {"what": "answer", "status": 429, "retry_after_seconds": 1},
    {"what": "cut_before"},
    {"what": "cut_after"},
    {"what": "slow", "seconds": 1},
)


@dataclass
class Memory:
    """The agent's resident memory, in MB, by how many launches have ended."""

    samples: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])

    def take(self, ended: int, pid: int) -> None:
        self.samples.append((ended, psutil.Process(pid).memory_info().rss / MEGABYTE))

    def at(self, ended: int) -> float:
        """Return what it was when so many had ended: the mean of three samples."""
        nearest = sorted(self.samples, key=lambda sample: abs(sample[0] - ended))[:3]
        return sum(megabytes for _, megabytes in nearest) / len(nearest)


async def soak(items: int, seed: int) -> int:
    """Run the soak and print its figures; return the exit code."""
    from tests.chaos.arena import arena
    from tests.chaos.servers import PrefectProcess
    from tests.integration.conftest import PrefectServer, prefect_client_of, send_what_is_left

    home = Path(tempfile.mkdtemp(prefix="vertex-launch-soak-prefect-"))
    async with PrefectProcess(home, on_file=False) as server:
        with prefect_client_of(PrefectServer(server.api_url, server.environment, home)):
            async with arena(
                server.api_url,
                server.environment,
                seed=seed,
                max_jobs=MAX_JOBS,
                job_seconds=JOB_SECONDS,
                is_watched=False,
                settings={},
                lease_seconds=60.0,
                submissions_per_minute=100_000,
                calls_per_minute=100_000,
                init_grace_seconds=30.0,
            ) as scene:
                found = await _serve(scene, items, seed)
            send_what_is_left()
    shutil.rmtree(home, ignore_errors=True)
    for violation in found:
        print(f"VIOLATION: {violation}")
    if not found:
        shutil.rmtree(scene.directory, ignore_errors=True)
    return 1 if found else 0


async def _serve(scene: Any, items: int, seed: int) -> list[str]:
    """Push everything, let it be served, and return the violations."""
    from tests.chaos import auditor
    from tests.chaos.figures import figures, table

    await scene.workload.push(REAL_RUNS, "real run")
    await scene.workload.push(items - REAL_RUNS)
    print(f"{items} items are queued", flush=True)
    for server in ("wandb", "vertex"):
        for number, fault in enumerate(FAULTS):
            share = FAULTY_SHARE / len(FAULTS)
            await scene.sandbox.switch_on(
                server=server, probability=share, times=None, seed=seed * 100 + number, **fault
            )
    agent, memory, started = await scene.start_agent(), Memory(), time.monotonic()
    memory_told = 0
    while (ended := await _ended(scene)) < items:
        if not agent.is_alive or time.monotonic() - started > END_SECONDS:
            break
        memory.take(ended, agent.pid)
        if ended >= memory_told:
            print(
                f"{time.monotonic() - started:6.0f} s  {ended:5d} ended  {memory.samples[-1][1]:.0f} MB",
                flush=True,
            )
            memory_told += max(1, items // 20)
        await asyncio.sleep(LOOK_SECONDS)
    memory.take(ended, agent.pid)
    seconds = time.monotonic() - started
    faults = await scene.sandbox.switch_off()
    is_open = await scene.open_items()
    evidence = await scene.evidence()
    early, late = memory.at(items // 4), memory.at(items)
    print(
        table(
            figures(scene, evidence)
            | {
                "items a second": round(items / seconds, 2),
                "calls that went wrong": sum(fault["hit"] for fault in faults),
                f"agent's memory after {items // 4} items": f"{early:.0f} MB",
                f"agent's memory after {items} items": f"{late:.0f} MB ({(late - early) / early:+.1%})",
            }
        )
    )
    return [*(f"item {item_id} has not ended" for item_id in sorted(is_open)), *auditor.violations(evidence)]


async def _ended(scene: Any) -> int:
    try:
        return await scene.prefect.count_ended()
    except httpx.HTTPError:
        return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(asyncio.run(soak(options.items, options.seed)))
