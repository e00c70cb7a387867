"""Time as an argument, so that tests can run in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from and how it is waited for."""

    def now(self) -> datetime:
        """Return the time of day, with its time zone."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only grow, for measuring spans."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the time of day in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that only grow, for measuring spans."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        await asyncio.sleep(seconds)


async def sleep_until(event: asyncio.Event, seconds: float, clock: Clock) -> bool:
    """Wait until `event` is set, at most so long; return whether it is."""
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    waking = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in (sleeping, waking):
            waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiter
    return event.is_set()
