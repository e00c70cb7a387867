"""A process: the tasks of one agent, and its death."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any
from uuid import UUID
from weakref import ref

current: ContextVar[Process | None] = ContextVar("current_process", default=None)


class Process:
    """A process that can die at any moment; nothing that it does afterwards has an effect."""

    def __init__(self, name: str, flow_run_id: UUID) -> None:
        self.name = name
        self.flow_run_id = flow_run_id
        self.is_dead = False
        self._most_tasks = 100
        # In the order of their making, so that they end in the same order each time.
        self._tasks: list[ref[asyncio.Task[Any]]] = []

    def die(self) -> None:
        """Drop every task; whoever calls this from one of them has to end with CancelledError."""
        self.is_dead = True
        own = asyncio.current_task()
        for known in self._tasks:
            task = known()
            if task is not None and task is not own:
                task.cancel()

    def add(self, task: asyncio.Task[Any]) -> None:
        """Let a task be one of this process."""
        self._tasks.append(ref(task))
        if len(self._tasks) > self._most_tasks:
            self._tasks = [
                known for known in self._tasks if (task := known()) is not None and not task.done()
            ]
            self._most_tasks = 2 * len(self._tasks) + 100


def make_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
    """Make a task that belongs to the process which starts it (a loop's task factory)."""
    task = asyncio.Task(coro, loop=loop, **kwargs)
    if (process := current.get()) is not None:
        process.add(task)
    return task
