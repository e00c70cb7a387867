"""Waiting for something to become true in a system that moves by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.1


async def until(condition: Callable[[], Awaitable[T | None]]) -> T:
    """Wait until an asynchronous condition holds, and return what it found."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (found := await condition()):
            await asyncio.sleep(POLL_SECONDS)
    return found
