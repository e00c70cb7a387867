"""Latency: one item at a time on an idle queue, from its push to its CustomJob."""

from __future__ import annotations

import asyncio
import random

from benchmarks.bench_queue import launch_queue, serving
from benchmarks.figures import Figure, Result, median, percentile
from benchmarks.servers import servers

AIM_SECONDS = 2.0
START_SECONDS = 120.0
WARM_UP = 3
# The agent looks at an idle queue every 2 s: pushes must not come in step with it.
LONGEST_PAUSE_SECONDS = 2.0


async def measure(port: int, items: int) -> Result:
    """Push so many items, each after the job of the one before, at random moments of the poll."""
    pauses = random.Random(1)  # the same moments in every run
    seconds: list[float] = []
    async with (
        servers(port) as running,
        launch_queue(running, "latency", max_jobs=items + WARM_UP) as queue,
        serving(queue) as agent,
    ):
        for number in range(items + WARM_UP):
            item_id = await queue.push(f"run-{number}")
            created = await queue.until_created(agent, timeout_seconds=START_SECONDS)
            if number >= WARM_UP:
                seconds.append(created[item_id] - queue.pushed[item_id])
            await asyncio.sleep(pauses.uniform(0, LONGEST_PAUSE_SECONDS))
    figures = [
        Figure("push to CustomJob on an idle queue, median", median(seconds), "s", AIM_SECONDS),
        Figure("push to CustomJob on an idle queue, p99", percentile(seconds, 99), "s"),
        Figure("push to CustomJob on an idle queue, fastest", min(seconds), "s"),
    ]
    return Result("latency", {"items": items}, figures, {"seconds": seconds})
