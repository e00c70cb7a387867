"""Time as an argument, so that tests can run in virtual time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Where the time comes from and how it is waited for."""

    def now(self) -> datetime:
        """Return the time of day, with its time zone."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only grow, for measuring spans, also while the machine sleeps."""
        ...

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Wait for a number of seconds."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the time of day in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that only grow, for measuring spans, also while the machine sleeps."""
        # Python's own stands still on Linux while the machine is suspended: nothing would seem to age.
        return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        await asyncio.sleep(seconds)


async def sleep_until(event: asyncio.Event, seconds: float, clock: Clock) -> bool:
    """Wait until `event` is set, at most so long; return whether it is."""
    return await sleep_until_any([event], seconds, clock)


async def sleep_until_any(events: Iterable[asyncio.Event], seconds: float, clock: Clock) -> bool:
    """Wait until one of `events` is set, at most so long; return whether one is."""
    events = tuple(events)
    await _first_of(clock.sleep(seconds), *(event.wait() for event in events))
    return any(event.is_set() for event in events)


async def until_any(*events: asyncio.Event) -> None:
    """Wait until one of `events` is set."""
    await _first_of(*(event.wait() for event in events))


async def unless_any(work: Coroutine[Any, Any, T], *events: asyncio.Event) -> T | None:
    """Return what `work` returns, or None if one of `events` is set before; the work is cancelled then."""
    task = asyncio.ensure_future(work)
    try:
        await _first_of(_done(task), *(event.wait() for event in events))
        return task.result() if task.done() else None
    finally:
        task.cancel()
        # Not `await task`: whoever is cancelled here as well would take its own end for the work's.
        await asyncio.wait({task})


async def _done(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])


async def _first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Wait until one of `works` is done; the others, which wait for a time or an event, are cancelled."""
    is_any_done = asyncio.get_running_loop().create_future()

    def done(_: object) -> None:
        if not is_any_done.done():
            is_any_done.set_result(None)

    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        for task in tasks:
            task.add_done_callback(done)
        await is_any_done
    finally:
        for task in tasks:
            task.cancel()
