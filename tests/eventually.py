"""Waiting for what another task or process brings about. The clock ends a hang, and nothing else."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

# Nothing in these tests takes so long, however busy the machine is.
HANG_SECONDS = 300.0
POLL_SECONDS = 0.01
# A condition that is awaited asks a server.
ASK_SECONDS = 0.1


async def until(condition: Callable[[], T | Awaitable[T]]) -> T:
    """Wait until a condition, which may be asynchronous, holds, and return what it found.

    Raises TimeoutError when it hangs.
    """
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            found = condition()
            pause_seconds = POLL_SECONDS
            if inspect.isawaitable(found):
                found, pause_seconds = await found, ASK_SECONDS
            if found:
                return cast("T", found)
            await asyncio.sleep(pause_seconds)


async def finished(work: Awaitable[T]) -> T:
    """Wait until some work is done, and return its result. Raises TimeoutError when it hangs."""
    return await asyncio.wait_for(work, HANG_SECONDS)
