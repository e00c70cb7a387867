"""`make soak`: 2,000 items through one agent while a twentieth of all calls goes wrong.

Real processes: an agent, a Prefect server and the sandbox, whose faults are drawn from the seed. In the end
every item is audited, as many calls must have gone wrong as were meant to, and the agent's memory must be
what it was when the first quarter of the items had ended.
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
from typing import TYPE_CHECKING, Any

import httpx
import psutil

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

MAX_JOBS = 20
JOB_SECONDS = 1.0
REAL_RUNS = 4
LOOK_SECONDS = 3.0
END_SECONDS = 2700.0
FAULTY_SHARE = 0.05
LEAST_FAULTY_SHARE = 0.03
# A slot whose answer was lost is held until its lease ends, which nobody has to wait five minutes for.
SHORT_LEASES = {
    "prefect_vertex_launch.coordination.slots.LEASE_SECONDS": 60.0,
    "prefect_vertex_launch.coordination.slots.RENEWAL_SECONDS": 20.0,
}
# How much more memory the last quarter of the items may take than the first, and with how many items that
# can be told: caches fill up at first.
MOST_GROWTH = 1.05
LEAST_ITEMS = 400
WARM_UP = 0.1
MEGABYTE = 1_000_000
SERVERS = ("wandb", "vertex")
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

    def between(self, start: float, end: float) -> float:
        """Return the mean while so many launches had ended, or what it was next to that."""
        there = [megabytes for ended, megabytes in self.samples if start <= ended <= end]
        nearest = min(self.samples, key=lambda sample: abs(sample[0] - end))
        return sum(there) / len(there) if there else nearest[1]


@dataclass(frozen=True)
class Calls:
    """The calls of which some were to go wrong, and those that did."""

    whose: str
    count: int
    hit: int

    @property
    def share(self) -> float:
        return self.hit / self.count if self.count else 0.0


async def soak(items: int, seed: int) -> int:
    """Run the soak and print its figures; return the exit code."""
    from tests.chaos.arena import arena
    from tests.chaos.servers import PrefectProcess
    from tests.end_to_end.prefect_server import PrefectServer, prefect_client_of, send_what_is_left

    home = Path(tempfile.mkdtemp(prefix="vertex-launch-soak-prefect-"))
    async with PrefectProcess(home, on_file=False, is_faulty=True) as server:
        with prefect_client_of(PrefectServer(server.api_url, server.environment, home)):
            async with arena(
                server.api_url,
                server.environment,
                seed=seed,
                max_jobs=MAX_JOBS,
                job_seconds=JOB_SECONDS,
                is_watched=False,
                settings=SHORT_LEASES,
                lease_seconds=60.0,
                submissions_per_minute=100_000,
                calls_per_minute=100_000,
                init_grace_seconds=30.0,
                prefect_server=server,
            ) as scene:
                found = await _serve(scene, items, seed)
            send_what_is_left()
    shutil.rmtree(home, ignore_errors=True)
    for violation in found:
        print(f"VIOLATION: {violation}")
    if not found:
        shutil.rmtree(scene.directory, ignore_errors=True)
    return 1 if found else 0


async def _serve(scene: Arena, items: int, seed: int) -> list[str]:
    """Push everything, let it be served, and return the violations."""
    from tests.chaos import auditor
    from tests.chaos.figures import figures, table

    await scene.workload.push(REAL_RUNS, "real run")
    await scene.workload.push(items - REAL_RUNS)
    print(f"{items} items are queued", flush=True)
    await _let_go_wrong(scene, seed)
    started = time.monotonic()
    memory = await _until_served(scene, items)
    seconds = time.monotonic() - started
    calls = await _end_faults(scene)
    is_open = await scene.open_items()
    evidence = await scene.evidence()
    early, late = memory.between(items * WARM_UP, items * 0.25), memory.between(items * 0.75, items)
    rows = figures(scene, evidence) | {
        "items a second": round(items / seconds, 2),
        **{f"calls to {its.whose} that went wrong": f"{its.hit} of {its.count}" for its in calls},
        "agent's memory, first quarter": f"{early:.0f} MB",
        "agent's memory, last quarter": f"{late:.0f} MB ({late / early - 1:+.1%})",
    }
    print(table(rows))
    found = [*(f"item {item_id} has not ended" for item_id in sorted(is_open)), *auditor.violations(evidence)]
    found += [
        f"only {its.hit} of {its.count} calls to {its.whose} went wrong"
        for its in calls
        if its.share < LEAST_FAULTY_SHARE
    ]
    if items >= LEAST_ITEMS and late > early * MOST_GROWTH:
        found.append(f"the agent's memory grew from {early:.0f} to {late:.0f} MB")
    return found


async def _let_go_wrong(scene: Arena, seed: int) -> None:
    for server in SERVERS:
        for number, fault in enumerate(FAULTS):
            share = FAULTY_SHARE / len(FAULTS)
            await scene.sandbox.switch_on(
                server=server, probability=share, times=None, seed=seed * 100 + number, **fault
            )
    assert scene.prefect_server is not None
    await scene.prefect_server.let_go_wrong(FAULTY_SHARE, seed)


async def _end_faults(scene: Arena) -> list[Calls]:
    """Return what the faults have done, which is over now."""
    assert scene.prefect_server is not None
    await scene.prefect_server.let_go_wrong(0.0, 0)
    calls = [Calls("Prefect", *await scene.prefect_server.went_wrong())]
    faults = await scene.sandbox.switch_off()
    for server in SERVERS:
        its = [fault for fault in faults if fault["server"] == server]
        # Each call is there for the first of them; one that it has hit is not there for the next.
        calls.append(Calls(server, its[0]["matched"], sum(fault["hit"] for fault in its)))
    return calls


async def _until_served(scene: Arena, items: int) -> Memory:
    """Let an agent serve the queue, and return its memory meanwhile."""
    agent, memory, started = await scene.start_agent(), Memory(), time.monotonic()
    told = 0
    while (ended := await _ended(scene)) < items:
        if not agent.is_alive or time.monotonic() - started > END_SECONDS:
            break
        memory.take(ended, agent.pid)
        if ended >= told:
            seconds = time.monotonic() - started
            print(f"{seconds:6.0f} s  {ended:5d} ended  {memory.samples[-1][1]:.0f} MB", flush=True)
            told += max(1, items // 20)
        await asyncio.sleep(LOOK_SECONDS)
    if agent.is_alive:
        memory.take(ended, agent.pid)
    return memory


async def _ended(scene: Arena) -> int:
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
