"""A process: the tasks of one agent, and its death."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf
from typing import Any
from uuid import UUID
from weakref import ref

from tests.simulation.virtual_time import VirtualClock, VirtualLoop

current: ContextVar[Process | None] = ContextVar("current_process", default=None)


# A loop's timers come this much early at most; what is left then is no time to wait for.
CLOCK_SECONDS = 1e-6
# Whoever has not reached Prefect for so long may have been taken for gone there.
AWAY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Look:
    """A list that was answered: from when the answer is, and when it arrived."""

    made: float
    answered: float


class Process:
    """A process that can die at any moment; nothing that it does afterwards has an effect.

    It can also stand still: until then no call is made and no answer or timer is noticed.
    """

    def __init__(self, name: str, flow_run_id: UUID, place: int, loop: VirtualLoop) -> None:
        self.name = name
        self.flow_run_id = flow_run_id
        self.place = place
        self.clock = ProcessClock(loop, self)
        self.is_dead = False
        # Whether it is about to end, or has, and when something last went wrong with one of its calls.
        self.is_ending = False
        self.disturbed = -inf
        # When it last reached Prefect, and when it did so first again after it had been away from it.
        self._reached_prefect = loop.time()
        self.back_at_prefect = -inf
        self.started = loop.time()
        # When it last asked for the jobs of an item in a region, by the item's label and the region.
        self.looks: dict[tuple[str, str], Look] = {}
        self._loop = loop
        # When it went on, or will, after it last stood still.
        self.frozen_until = 0.0
        self._most_tasks = 100
        # In the order of their making, so that they end in the same order each time.
        self._tasks: list[ref[asyncio.Task[Any]]] = []

    def die(self) -> None:
        """Drop every task; whoever calls this from one of them has to end with CancelledError."""
        self.is_dead = True
        for task in self._others():
            task.cancel()

    async def end(self) -> None:
        """Cancel every other task and wait for its end, as asyncio does when the first one is done."""
        others = self._others()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _others(self) -> list[asyncio.Task[Any]]:
        tasks = (known() for known in self._tasks)
        own = asyncio.current_task()
        return [task for task in tasks if task is not None and task is not own and not task.done()]

    def reach_prefect(self) -> None:
        """A call of this process is carried out at Prefect."""
        now = self._loop.time()
        if now - self._reached_prefect > AWAY_SECONDS:
            self.back_at_prefect = now
        self._reached_prefect = now

    def begin_to_end(self) -> None:
        """Take on nothing more from here on."""
        self.is_ending = True

    def freeze(self, until: float) -> None:
        """Stand still until then."""
        self.frozen_until = max(until, self.frozen_until)
        self.disturbed = max(until, self.disturbed)

    @property
    def is_frozen(self) -> bool:
        return self.frozen_until - self._loop.time() > CLOCK_SECONDS

    async def thaw(self) -> None:
        """Wait until the process goes on."""
        while self.is_frozen:
            await self._loop.sleep(self.frozen_until - self._loop.time())

    def add(self, task: asyncio.Task[Any]) -> None:
        """Let a task be one of this process."""
        self._tasks.append(ref(task))
        if len(self._tasks) > self._most_tasks:
            self._tasks = [
                known for known in self._tasks if (task := known()) is not None and not task.done()
            ]
            self._most_tasks = 2 * len(self._tasks) + 100


class ProcessClock(VirtualClock):
    """The clock of one process, which notices a time that is over only when it does not stand still."""

    def __init__(self, loop: VirtualLoop, process: Process) -> None:
        super().__init__(loop)
        self._process = process

    async def sleep(self, seconds: float) -> None:
        await self._loop.sleep(seconds)
        if self._process.is_frozen:
            await self._process.thaw()


def make_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
    """Make a task that belongs to the process which starts it (a loop's task factory)."""
    task = asyncio.Task(coro, loop=loop, **kwargs)
    if (process := current.get()) is not None:
        process.add(task)
    return task
