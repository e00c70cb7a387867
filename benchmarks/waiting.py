"""Waiting: many jobs under way at once in one agent, and what it costs to do nothing but wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.bench_queue import launch_queue, serving
from benchmarks.burst import until_quiet
from benchmarks.figures import Figure, Result, median
from benchmarks.processes import Measured, peak_memory
from benchmarks.servers import Servers, servers

AIM_MB = 300.0
AIM_CALLS = 0.15
TIMEOUT_SECONDS = 3600.0
HOUR = 3600.0


async def measure(port: int, items: int, window_seconds: float) -> Result:
    """Push so many items, wait until all jobs are there and the agent is quiet, and look on for a while."""
    async with (
        servers(port) as running,
        launch_queue(running, "waiting", max_jobs=items) as queue,
        serving(queue) as agent,
        peak_memory(agent) as filling,
    ):
        started = time.time()
        await queue.push_many(items)
        created = await queue.until_created(agent, timeout_seconds=TIMEOUT_SECONDS)
        filled_seconds = max(created.values()) - started
        await until_quiet(agent)
        quiet_seconds = time.time() - started
        steady = await _steady(running, agent, window_seconds)
    per_job = {
        method: calls / items / steady["seconds"] * 60 for method, calls in steady["vertex_calls"].items()
    }
    hourly = {name: seconds / steady["seconds"] * HOUR for name, seconds in steady["cpu_seconds"].items()}
    figures = [
        Figure(f"{items} waiting: memory of the agent", median(steady["memory_mb"]), "MB", AIM_MB),
        Figure(f"{items} waiting: memory of the agent at its peak", max(filling), "MB"),
        Figure(f"{items} waiting: threads of the agent", float(steady["threads"]), ""),
        Figure(f"{items} waiting: CPU per hour, agent", hourly["agent"], "s"),
        Figure(f"{items} waiting: CPU per hour, Prefect server", hourly["prefect"], "s"),
        Figure("Vertex calls per live job per minute", sum(per_job.values()), "", AIM_CALLS),
        Figure(f"{items} pushed until the last job is there", filled_seconds, "s"),
        Figure(f"{items} pushed until the agent is quiet", quiet_seconds, "s"),
    ]
    samples = {**steady, "filling_memory_mb": filling, "calls_by_method": per_job}
    return Result("waiting", {"items": items, "window_seconds": window_seconds}, figures, samples)


async def _steady(running: Servers, agent: Measured, window_seconds: float) -> dict[str, Any]:
    """Look on for a while in which nobody else talks to the servers."""
    calls, cpu = await running.vertex_calls(), _cpu(running, agent)
    began = time.monotonic()
    async with peak_memory(agent) as memory:
        await asyncio.sleep(window_seconds)
    seconds = time.monotonic() - began
    agent.require_running()
    calls_after, cpu_after = await running.vertex_calls(), _cpu(running, agent)
    return {
        "seconds": seconds,
        "vertex_calls": {method: count - calls.get(method, 0) for method, count in calls_after.items()},
        "cpu_seconds": {name: cpu_after[name] - cpu[name] for name in cpu},
        "memory_mb": memory,
        "threads": agent.threads(),
    }


def _cpu(running: Servers, agent: Measured) -> dict[str, float]:
    return {"agent": agent.cpu_seconds(), "prefect": running.prefect.cpu_seconds()}
