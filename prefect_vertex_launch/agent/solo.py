"""Taking one item without an agent: for a `launch` that a person or a schedule started by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client

from prefect_vertex_launch.coordination.heartbeat import read_flow_runs
from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.coordination.slots import Slots, scheduler_slots_of, slots_of
from prefect_vertex_launch.coordination.tags import launch_tags, owner_of
from prefect_vertex_launch.coordination.whereabouts import whereabouts_labels
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clock import sleep_until
from prefect_vertex_launch.launch import render as preparation
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.queue_context import LaunchSession, own_flow_run_id


@contextlib.asynccontextmanager
async def next_item(session: LaunchSession) -> AsyncIterator[LiveLaunch | None]:
    """Take the next item of the queue under its concurrency limit; None when nothing is queued.

    Waits for a slot first. It is given back when the item's job has ended, unless an agent has taken the
    launch for crashed and goes on with both. The flow run gets the item's name, tags and parameter, so that
    it can be found like any other launch.
    """
    flow_run_id, clock = own_flow_run_id(), session.clock
    async with get_client() as client:
        taken = partial(_taken_over, client)
        slots = slots_of(session.block, client, holder_id=flow_run_id, clock=clock, taken=taken)
        await slots.ensure_limit()
        slot, live = await _taken(session, slots), None
        try:
            popped = await session.wandb.pop(None)
            if popped is None:
                yield None
                return
            item = QueueItem.from_popped(popped)
            config = preparation.configuration(session, item)
            live = LiveLaunch(item, flow_run_id, api_key=popped.api_key, config=config)
            if item.is_scheduler:
                await slots.release(slot)
                slots = scheduler_slots_of(
                    session.block, client, holder_id=flow_run_id, clock=clock, taken=taken
                )
                await slots.ensure_limit()
                slot = slots.owe()
            live.slot = slot
            labels = slots.labels_of(slot)
            whereabouts = whereabouts_labels(preparation.whereabouts(session, config))
            await _describe(client, session, live, {**labels, **whereabouts})
            slots.give(slot, flow_run_id, labels)
            async with (
                in_background(slots.keep_renewed, "slot renewal", clock),
                in_background(lambda: _look_after(session, slots, slot, live), "slot", clock),
            ):
                yield live
        finally:
            if live is None or live.job_ended.is_set():
                await slots.leave(slot)
            # Else its job may run on, and the slot ends with its lease or goes with the launch.


async def _taken_over(client: PrefectClient, flow_run_ids: set[UUID]) -> set[UUID]:
    """Return those launches that an agent has taken over: it took them for crashed."""
    runs = await read_flow_runs(client, flow_run_ids)
    return {run.id for run in runs if owner_of(run.tags) is not None}


async def _taken(session: LaunchSession, slots: Slots) -> Slot:
    while (slot := await slots.try_take()) is None:
        await session.clock.sleep(session.block.poll_seconds)
    return slot


async def _look_after(session: LaunchSession, slots: Slots, slot: Slot, live: LiveLaunch) -> None:
    """Let the launch start once it has its slot, keep it one, and give it back when its job has ended."""
    while not live.job_ended.is_set():
        if await slots.settle():
            if slot.is_held:
                slot.admits.set()
            else:
                live.leave.set()  # an agent has taken the launch for crashed, and goes on with it
        await sleep_until(live.job_ended, session.block.poll_seconds, session.clock)
    await slots.leave(slot)
    await asyncio.Event().wait()


async def _describe(
    client: PrefectClient, session: LaunchSession, live: LiveLaunch, labels: Mapping[str, str]
) -> None:
    await client.update_flow_run(
        live.flow_run_id,
        name=live.item.title,
        parameters={"queue": session.block_name, "item": live.item.model_dump(mode="json")},
        tags=launch_tags(session.block.entity, session.block.queue, live.item),
    )
    await client.update_flow_run_labels(live.flow_run_id, {**labels})
