"""Taking one item without an agent: for a `launch` that a person or a schedule started by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial
from uuid import UUID

from prefect.client.orchestration import PrefectClient

from prefect_vertex_launch.coordination.launch_record import launch_tags, owner_of, parents_labels
from prefect_vertex_launch.coordination.prefect_api import read_flow_runs_by_id
from prefect_vertex_launch.coordination.prefect_client import prefect_client
from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.coordination.slots import QueueSlots, Slots
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clock import sleep_until
from prefect_vertex_launch.launch import render
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.queue_context import QueueContext, own_flow_run_id


@contextlib.asynccontextmanager
async def next_item(context: QueueContext) -> AsyncIterator[Launch | None]:
    """Take the next item of the queue under its concurrency limit; None when nothing is queued.

    Waits for a slot first. It is given back when the item's job has ended, unless an agent has taken the
    launch for crashed and goes on with both. The flow run gets the item's name, tags and parameter, so that
    it can be found like any other launch.
    """
    flow_run_id, clock = own_flow_run_id(), context.clock
    async with prefect_client() as client:
        taken = partial(_taken_over, client)
        queue_slots = QueueSlots(context.block, client, holder_id=flow_run_id, clock=clock, taken=taken)
        slots = queue_slots.jobs
        await slots.ensure_limit()
        slot, launch = await _taken(context, slots), None
        try:
            popped = await context.wandb.pop(None)
            if popped is None:
                yield None
                return
            item = QueueItem.from_popped(popped)
            config = await render.configuration(context, item)
            launch = Launch(item, flow_run_id, context, api_key=popped.api_key, config=config)
            if item.is_scheduler:
                await slots.release(slot)
                slots = queue_slots.schedulers
                await slots.ensure_limit()
                slot = slots.owe()
            launch.slot = slot
            labels = slots.labels_of(slot)
            parents = parents_labels(render.job_parents(context, config))
            await _describe(client, context, launch, {**labels, **parents})
            slots.give(slot, flow_run_id, labels)
            async with (
                in_background(slots.keep_renewed, "slot renewal", clock),
                in_background(lambda: _look_after(context, slots, slot, launch), "slot", clock),
            ):
                yield launch
        finally:
            if launch is None or launch.job_ended.is_set():
                await slots.leave(slot)
            # Else its job may run on, and the slot ends with its lease or goes with the launch.


async def _taken_over(client: PrefectClient, flow_run_ids: set[UUID]) -> set[UUID]:
    """Return those launches that an agent has taken over: it took them for crashed."""
    runs = await read_flow_runs_by_id(client, flow_run_ids)
    return {run.id for run in runs if owner_of(run.tags) is not None}


async def _taken(context: QueueContext, slots: Slots) -> Slot:
    while (slot := await slots.try_take()) is None:
        await context.clock.sleep(context.block.poll_seconds)
    return slot


async def _look_after(context: QueueContext, slots: Slots, slot: Slot, launch: Launch) -> None:
    """Let the launch start once it has its slot, keep it one, and give it back when its job has ended."""
    while not launch.job_ended.is_set():
        if await slots.settle():
            if slot.is_held:
                slot.admits.set()
            else:
                launch.leave.set()  # an agent has taken the launch for crashed, and goes on with it
        await sleep_until(launch.job_ended, context.block.poll_seconds, context.clock)
    await slots.leave(slot)
    await asyncio.Event().wait()


async def _describe(
    client: PrefectClient, context: QueueContext, launch: Launch, labels: Mapping[str, str]
) -> None:
    await client.update_flow_run(
        launch.flow_run_id,
        name=launch.item.title,
        parameters={"queue": context.block_name, "item": launch.item.kept()},
        tags=launch_tags(context.block.identity, launch.item.item_id, launch.item.run),
    )
    await client.update_flow_run_labels(launch.flow_run_id, {**labels})
