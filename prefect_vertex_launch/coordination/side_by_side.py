"""The same thing done for many, several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# So many requests of one agent keep a Prefect server busy, and leave it room for others.
AT_ONCE = 10


async def side_by_side(work: Callable[[T], Awaitable[R]], each: Iterable[T]) -> list[R]:
    """Return what `work` returns for each, ten at once; the first error ends what is not done yet."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def in_turn(one: T) -> R:
        async with turns:
            return await work(one)

    tasks = [asyncio.ensure_future(in_turn(one)) for one in each]
    try:
        return await asyncio.gather(*tasks)
    finally:
        if waiting := [task for task in tasks if task.cancel()]:
            await asyncio.wait(waiting)
