"""An event loop in virtual time: when nothing is ready, its clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class NothingEverHappens(RuntimeError):
    """Everybody waits and no timer is set: the simulation would stand still for ever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time starts at 0 and passes only when nobody can go on.

    It watches no file, and keeps its timers itself: asyncio's own order them by a method in Python. Nothing
    is checked of what is called soon: nearly all of it comes from asyncio's own futures.
    """

    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle | asyncio.Future[None]]] = []
        self._order = itertools.count()
        super().__init__()

    def time(self) -> float:
        return self._now

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def sleep(self, seconds: float) -> asyncio.Future[None]:
        """Return what is done after this time, as `asyncio.sleep` in fewer steps."""
        woken: asyncio.Future[None] = asyncio.Future(loop=self)
        heapq.heappush(self._timers, (self._now + seconds, next(self._order), woken))
        return woken

    def _run_once(self) -> None:
        ready = self._ready
        if not ready:
            self._jump()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                # As the handle does it itself, but that an error ends the simulation.
                handle._context.run(handle._callback, *handle._args)

    def _jump(self) -> None:
        """Let the time pass until the next timer is due."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise NothingEverHappens("everybody waits and nothing will wake them")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            due = heapq.heappop(timers)[2]
            if isinstance(due, asyncio.TimerHandle):
                self._ready.append(due)
            elif not due.done():
                due.set_result(None)


class VirtualClock:
    """The clock of everybody in a virtual loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time())

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await self._loop.sleep(seconds)
