"""Taking one item without an agent: for a `launch` that a person or a schedule started by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prefect.client.orchestration import PrefectClient, get_client

from flows.background import in_background
from flows.live_launch import LiveLaunch
from flows.queue_item import QueueItem
from flows.session import LaunchSession, own_flow_run_id
from flows.slots import Slot, Slots, lease_labels, scheduler_slots_of, slots_of
from flows.tags import launch_tags


@contextlib.asynccontextmanager
async def next_item(session: LaunchSession) -> AsyncIterator[LiveLaunch | None]:
    """Take the next item of the queue under its concurrency limit; None when nothing is queued.

    Waits for a slot first. The slot is given back when the item's job has ended, and the flow run
    gets the item's name, tags and parameter, so that it can be found like any other launch.
    """
    flow_run_id, clock = own_flow_run_id(), session.clock
    async with get_client() as client:
        slots = slots_of(session.block, client, holder_id=flow_run_id, clock=clock)
        await slots.ensure_limit()
        slot = await _taken(session, slots)
        try:
            popped = await session.wandb.pop(None)
            if popped is None:
                yield None
                return
            item = QueueItem.from_popped(popped)
            live = LiveLaunch(item, flow_run_id, api_key=popped.api_key)
            await _describe(client, session, live, slot)
            if item.is_scheduler:
                await slots.release(slot)
                slots = scheduler_slots_of(session.block, client, holder_id=flow_run_id, clock=clock)
                await slots.ensure_limit()
                slot = slots.owe(flow_run_id)
            async with (
                in_background(slots.keep_renewed, "slot renewal", clock),
                in_background(lambda: _look_after(session, slots, slot, live), "slot", clock),
            ):
                yield live
        finally:
            await slots.release(slot)


async def _taken(session: LaunchSession, slots: Slots) -> Slot:
    while (slot := await slots.try_take()) is None:
        await session.clock.sleep(session.block.poll_seconds)
    return slot


async def _look_after(session: LaunchSession, slots: Slots, slot: Slot, live: LiveLaunch) -> None:
    """Let the launch start once it has its slot, and give it back when no job is under way any more."""
    while not slot.is_held and not await slots.settle():
        await session.clock.sleep(session.block.poll_seconds)
    live.may_submit.set()
    await live.job_ended.wait()
    await slots.release(slot)
    await asyncio.Event().wait()


async def _describe(client: PrefectClient, session: LaunchSession, live: LiveLaunch, slot: Slot) -> None:
    await client.update_flow_run(
        live.flow_run_id,
        name=live.item.title,
        parameters={"queue": session.block_name, "item": live.item.model_dump(mode="json")},
        tags=launch_tags(session.block.entity, session.block.queue, live.item),
    )
    if slot.lease_id is not None:
        await client.update_flow_run_labels(live.flow_run_id, {**lease_labels(slot.lease_id)})
