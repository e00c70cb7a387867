"""Prefect's task engine, as a simulated process sees it.

A task runs its function, and tries again by its settings. Nothing of a task run is kept. Outside of a
simulated process Prefect's own engine runs, as ever.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from prefect.tasks import Task

from prefect_vertex_launch.core.errors import OutcomeUnknown, Transient
from tests.simulation.process import Process, current


@cache
def install() -> None:
    """Let tasks that are called in a simulated process be run here."""
    call = Task.__call__

    def run(self: Task[Any, Any], *arguments: Any, **options: Any) -> Any:
        process = current.get()
        if process is None:
            return call(self, *arguments, **options)
        return _run(self, process, arguments, options)

    Task.__call__ = run


async def _run(
    task: Task[Any, Any], process: Process, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    assert isinstance(task.retry_delay_seconds, list)
    assert task.retry_jitter_factor is not None
    for delay_seconds in [*task.retry_delay_seconds, None]:
        try:
            return await task.fn(*arguments, **options)
        except (Transient, OutcomeUnknown):
            if delay_seconds is None:
                raise
            await process.clock.sleep(delay_seconds * random.uniform(1.0, 1.0 + task.retry_jitter_factor))
    raise AssertionError("the last try either returns or raises")
