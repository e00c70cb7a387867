"""Endless work beside the body of a `with` block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.secrets import own_secrets
from prefect_vertex_launch.core.unforeseen import unforeseen

logger = clean_log(__name__)

RESTART_SECONDS = 5.0


@contextlib.asynccontextmanager
async def in_background(work: Callable[[], Awaitable[None]], name: str, clock: Clock) -> AsyncGenerator[None]:
    """Run an endless `work` beside the body and end it with the body.

    If it fails in a way that nobody foresaw, it is started again: one broken answer must not leave
    every waiting launch without its watcher.
    """

    async def keep_running() -> None:
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - see above
                told = unforeseen(error, where=name, log=logger, mask=own_secrets.mask)
                logger.warning("%s starts again in %.0f s: %s", name, RESTART_SECONDS, told)
            await clock.sleep(RESTART_SECONDS)

    task = asyncio.create_task(keep_running(), name=name)
    try:
        yield
    finally:
        task.cancel()
        # Not `await task`: whoever is cancelled here as well would take its own end for the task's.
        await asyncio.wait({task})
