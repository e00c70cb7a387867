"""The launches of one queue that are under way in this agent: it starts them and sees them through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any
from uuid import UUID

from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort

from prefect_vertex_launch.agent.tally import Tally
from prefect_vertex_launch.coordination.launch_record import waited_labels
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.coordination.prefect_api import expected_or_told
from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.coordination.slots import Slots
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.queue_context import QueueContext

logger = clean_log("prefect.vertex-launch.agent")

# What a claim takes unless W&B is away; an item that waited in vain returns to its queue by its lease.
CLAIM_SECONDS = 5.0

# Starts the flow run of a launch in this event loop.
StartLaunch = Callable[[FlowRun, QueueContext], "asyncio.Task[State[Any]]"]


class Supervisor:
    """Sees the launches of one queue through. Whatever goes wrong with one of them stays with it.

    Attributes:
        tally: What was done.
        launches: The launches under way, by item, until Prefect has their final states.
        left_at: When a launch was last left that may have a job and no slot, in monotonic seconds.
    """

    def __init__(
        self, context: QueueContext, store: LaunchStore, *, wake: asyncio.Event, start: StartLaunch
    ) -> None:
        self.tally = Tally()
        self.launches: dict[str, Launch] = {}
        self.left_at = -inf
        self._context = context
        self._store = store
        self._wake = wake
        self._start = start
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def flow_run_ids(self) -> set[UUID]:
        """Return the flow runs of the launches under way."""
        return {launch.flow_run_id for launch in self.launches.values()}

    def supervise(self, flow_run: FlowRun, launch: Launch, slots: Slots, slot: Slot) -> None:
        """Start a launch under its slot, and see it through."""
        item_id = launch.item.item_id
        launch.slot = slot
        if slot.is_held:  # else what it has running goes on, and a new job has to wait
            slot.admits.set()
        self._context.live[item_id] = launch
        self.launches[item_id] = launch
        self._tasks[item_id] = asyncio.create_task(self._see_through(flow_run, launch, slots))

    async def until_claimed(self, item_id: str) -> None:
        """Let a launch of this item that was adopted find out that the item's lease had ended meanwhile.

        It ends then, and goes on with the lease that the item has now.
        """
        launch = self.launches.get(item_id)
        if launch is not None and launch.run is None:
            await asyncio.wait({self._tasks[item_id]}, timeout=CLAIM_SECONDS)

    def leave_to_another(self, launch: Launch) -> None:
        """Leave a launch that another agent has taken over."""
        logger.warning("The launch of item %s is another agent's now", launch.item.item_id)
        launch.is_taken_over = True
        launch.leave.set()
        self.left_at = self._context.clock.monotonic()

    def leave_all(self) -> None:
        """Ask every launch to end here, for the next agent to go on; jobs are not touched."""
        for launch in [*self.launches.values()]:
            launch.leave.set()

    async def until_left(self) -> None:
        """Wait until no launch is under way here."""
        while tasks := {task for task in self._tasks.values() if not task.done()}:
            await asyncio.wait(tasks)

    async def _see_through(self, flow_run: FlowRun, launch: Launch, slots: Slots) -> None:
        """Follow one launch to its end; give its slot back when no job of it is under way any more.

        The slot of a launch that is left goes with it.
        """
        running = self._start(flow_run, self._context)
        job_ended = asyncio.create_task(launch.job_ended.wait())
        try:
            await asyncio.wait({running, job_ended}, return_when=asyncio.FIRST_COMPLETED)
            if launch.job_ended.is_set() and not launch.leave.is_set():
                await self._give_back(launch, slots)
            self._wake.set()
            state = await running
            if state.is_final():
                await self._give_back(launch, slots)
            self.tally.ends[(state.name or state.type.value).lower()] += 1
        except Abort:
            self.tally.handed_over += 1
            # Another agent may have taken it, or ended it even: nothing is written over what that one wrote.
            if self._context.is_sure and not launch.is_taken_over:
                await self._leave(flow_run, launch)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong with one launch stays with it
            # Its flow run is not in a final state: the next adoption pass starts it again, with its slot.
            told = expected_or_told(error, where=f"item {launch.item.item_id}", log=logger)
            logger.warning("The launch of item %s was interrupted: %s", launch.item.item_id, told)
        finally:
            if not launch.job_ended.is_set() and launch.slot in slots.unsure:
                self.left_at = self._context.clock.monotonic()
            slots.forget(launch.slot)
            job_ended.cancel()
            for book in (self._context.live, self._tasks, self.launches):
                book.pop(launch.item.item_id, None)
            self._wake.set()

    async def _give_back(self, launch: Launch, slots: Slots) -> None:
        """Give a slot back, unless it has gone with the launch to another agent, or may have."""
        if await launch.until_sure():
            await slots.release(launch.slot)

    async def _leave(self, flow_run: FlowRun, launch: Launch) -> None:
        """Mark a launch as one to adopt. Left unmarked it is found too, once this agent's run has ended."""
        try:
            is_waiting = launch.job is None or launch.job.start_time is None
            noted = launch.waited.noted_seconds(launch.job)
            waited = waited_labels(noted, has_job=launch.job is not None) if is_waiting and noted else {}
            await self._store.hand_over(flow_run.id, waited)
        except Exception as error:  # noqa: BLE001 - as above
            told = expected_or_told(error, where=f"launch {flow_run.name}", log=logger)
            logger.warning("The launch %s could not be marked for adoption: %s", flow_run.name, told)
