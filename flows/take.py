"""Taking one item without an agent: for a `launch` that a person or a schedule started by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prefect.client.orchestration import PrefectClient, get_client

from flows.queue_item import QueueItem
from flows.session import LaunchSession, LiveLaunch, in_background, own_flow_run_id
from flows.slots import Slot, Slots
from flows.tags import launch_tags


@contextlib.asynccontextmanager
async def next_item(session: LaunchSession) -> AsyncIterator[LiveLaunch | None]:
    """Take the next item of the queue under its concurrency limit; None when nothing is queued.

    Waits for a slot first. The slot is given back when the item's job has ended, and the flow run
    gets the item's name, tags and parameter, so that it can be found like any other launch.
    """
    flow_run_id = own_flow_run_id()
    async with get_client() as client:
        slots = Slots(
            client,
            session.block.limit_name,
            session.block.max_jobs,
            clock=session.clock,
            holder_id=flow_run_id,
        )
        await slots.ensure_limit()
        while (slot := await slots.try_take()) is None:
            await session.clock.sleep(session.block.poll_seconds)
        try:
            popped = await session.wandb.pop(None)
            if popped is None:
                yield None
                return
            live = LiveLaunch(
                item=QueueItem.from_popped(popped), flow_run_id=flow_run_id, api_key=popped.api_key
            )
            await _describe(client, session, live)
            async with (
                in_background(slots.keep_renewed, "slot renewal", session.clock),
                in_background(lambda: _release_at_end(slots, slot, live), "slot release", session.clock),
            ):
                yield live
        finally:
            await slots.release(slot)


async def _release_at_end(slots: Slots, slot: Slot, live: LiveLaunch) -> None:
    await live.job_ended.wait()
    await slots.release(slot)
    await asyncio.Event().wait()


async def _describe(client: PrefectClient, session: LaunchSession, live: LiveLaunch) -> None:
    await client.update_flow_run(
        live.flow_run_id,
        name=live.item.title,
        parameters={"queue": session.block_name, "item": live.item.model_dump(mode="json")},
        tags=launch_tags(session.block.entity, session.block.queue, live.item),
    )
