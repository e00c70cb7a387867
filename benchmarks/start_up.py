"""Start-up: from `vertex-launch agent` on the command line until its first item has left the queue."""

from __future__ import annotations

from benchmarks.bench_queue import launch_queue, serving
from benchmarks.figures import Figure, Result, median
from benchmarks.servers import servers

AIM_SECONDS = 5.0
CREATE_SECONDS = 120.0


async def measure(port: int, repeat: int) -> Result:
    """Start so many agents one after the other, each on a queue of its own with one item on it."""
    popped: list[float] = []
    created: list[float] = []
    cpu: list[float] = []
    async with servers(port) as running:
        for number in range(repeat):
            async with launch_queue(running, f"start-{number}", max_jobs=1) as queue:
                item_id = await queue.push("first")
                async with serving(queue) as agent:
                    popped.append(await queue.until_popped(item_id) - agent.started)
                    cpu.append(agent.cpu_seconds())
                    times = await queue.until_created(agent, timeout_seconds=CREATE_SECONDS)
                    created.append(times[item_id] - agent.started)
    figures = [
        Figure("start-up until the first pop, median", median(popped), "s", AIM_SECONDS),
        Figure("start-up until the first pop, slowest", max(popped), "s"),
        Figure("start-up until the first job, median", median(created), "s"),
        Figure("CPU of a start until the first pop, median", median(cpu), "s"),
    ]
    return Result(
        "start-up",
        {"agents": repeat},
        figures,
        {"popped_seconds": popped, "created_seconds": created, "cpu_seconds": cpu},
    )
