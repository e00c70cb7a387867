"""Burst: many items at once, until the last job is there, and what each costs the agent in CPU."""

from __future__ import annotations

import asyncio
import time

import httpx

from benchmarks.bench_queue import launch_queue, serving
from benchmarks.figures import Figure, Result, median
from benchmarks.processes import Measured
from benchmarks.servers import Servers, servers

AIM_SECONDS = 15.0
TIMEOUT_SECONDS = 600.0
QUIET_SECONDS = 3.0
QUIET_SHARE = 0.1
FINAL_STATES = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


async def measure(port: int, items: int) -> Result:
    """Push so many items to an agent that idles, then cancel all jobs and see the launches end."""
    async with (
        servers(port) as running,
        launch_queue(running, "burst", max_jobs=items + 1) as queue,
        serving(queue) as agent,
    ):
        await queue.push("warm-up")
        await queue.until_created(agent, timeout_seconds=TIMEOUT_SECONDS)
        queue.pushed.clear()
        await until_quiet(agent)
        cpu = [_cpu(running, agent)]
        pushing = time.time()
        await queue.push_many(items)
        pushed = time.time()
        created = await queue.until_created(agent, timeout_seconds=TIMEOUT_SECONDS)
        cpu.append(_cpu(running, agent))
        await until_quiet(agent)
        cpu.append(_cpu(running, agent))
        await queue.cancel_jobs()
        await _until_ended(items + 1)
        await until_quiet(agent)
        cpu.append(_cpu(running, agent))
    waits = sorted(moment - pushing for moment in created.values())
    per_item = {name: (cpu[2][name] - cpu[0][name]) / items for name in cpu[0]}
    to_the_end = {name: (cpu[3][name] - cpu[0][name]) / items for name in cpu[0]}
    figures = [
        Figure(f"burst of {items}: first push to last CustomJob", waits[-1], "s", AIM_SECONDS),
        Figure(f"burst of {items}: first push to the middle one", median(waits), "s"),
        Figure("CPU per item until its job waits, agent", per_item["agent"], "s"),
        Figure("CPU per item until its job waits, Prefect server", per_item["prefect"], "s"),
        Figure("CPU per item until its job waits, sandbox", per_item["sandbox"], "s"),
        Figure("CPU per item, report of its end too, agent", to_the_end["agent"], "s"),
        Figure("CPU per item, report of its end too, Prefect server", to_the_end["prefect"], "s"),
    ]
    samples = {"seconds_after_first_push": waits, "pushing_seconds": pushed - pushing, "cpu_seconds": cpu}
    return Result("burst", {"items": items}, figures, samples)


async def until_quiet(agent: Measured) -> None:
    """Wait until the agent has hardly used its CPU for a while: what it owed is done, or is its idle load."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        before = agent.cpu_seconds()
        await asyncio.sleep(QUIET_SECONDS)
        agent.require_running()
        if agent.cpu_seconds() - before < QUIET_SHARE * QUIET_SECONDS:
            return


async def _until_ended(launches: int) -> None:
    from prefect.settings import PREFECT_API_URL

    wanted = {
        "flows": {"name": {"any_": ["launch"]}},
        "flow_runs": {"state": {"type": {"any_": FINAL_STATES}}},
    }
    deadline = time.monotonic() + TIMEOUT_SECONDS
    async with httpx.AsyncClient(base_url=f"{PREFECT_API_URL.value()}/", timeout=60) as http:
        while time.monotonic() < deadline:
            response = await http.post("flow_runs/count", json=wanted)
            if response.json() >= launches:
                return
            await asyncio.sleep(2.0)
    raise TimeoutError(f"{launches} launches have not ended after {TIMEOUT_SECONDS:.0f} s")


def _cpu(running: Servers, agent: Measured) -> dict[str, float]:
    return {
        "agent": agent.cpu_seconds(),
        "prefect": running.prefect.cpu_seconds(),
        "sandbox": running.sandbox.cpu_seconds(),
    }
