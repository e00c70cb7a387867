"""Work beside a body, or until an event: who is cancelled while it ends is cancelled all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clock import SystemClock, unless_any


class SlowToEnd:
    """Work that needs a moment to end once it is cancelled."""

    def __init__(self) -> None:
        self.is_ending = asyncio.Event()

    async def work(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.is_ending.set()
            await asyncio.sleep(0)


async def leave_a_background(slow: SlowToEnd) -> None:
    async with in_background(slow.work, "the work", SystemClock()):
        await asyncio.sleep(0)
    await asyncio.Event().wait()


async def end_by_an_event(slow: SlowToEnd) -> None:
    is_over = asyncio.Event()
    asyncio.get_running_loop().call_soon(is_over.set)
    await unless_any(slow.work(), is_over)
    await asyncio.Event().wait()


@pytest.mark.parametrize("leave", [leave_a_background, end_by_an_event])
async def test_who_is_cancelled_while_work_ends_goes_on_no_longer(
    leave: Callable[[SlowToEnd], Coroutine[Any, Any, None]],
) -> None:
    slow = SlowToEnd()
    leaving = asyncio.create_task(leave(slow))
    await slow.is_ending.wait()

    leaving.cancel()
    done, _ = await asyncio.wait({leaving}, timeout=5)

    assert done
    assert leaving.cancelled()
