"""One queue, as an agent serves it: take a slot, take an item, start its launch, see it through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from math import inf
from typing import Any
from uuid import UUID

from prefect import State
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from pydantic import SecretStr

from prefect_vertex_launch.agent.others import Others
from prefect_vertex_launch.coordination import marks
from prefect_vertex_launch.coordination.launch_store import FRESH_SECONDS, LaunchRuns
from prefect_vertex_launch.coordination.mending import Mendings
from prefect_vertex_launch.coordination.prefect_failures import PREFECT_FAILURES
from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.coordination.slots import Slots, scheduler_slots_of, slots_of
from prefect_vertex_launch.coordination.whereabouts import whereabouts_of
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.errors import LaunchError, NotFound
from prefect_vertex_launch.core.states import Requester, StopRequest
from prefect_vertex_launch.flows.launch_engine import start_launch
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig
from prefect_vertex_launch.launch import render as preparation
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.queue_context import LaunchSession
from prefect_vertex_launch.wandb.queue import PoppedItem

logger = logging.getLogger("prefect.vertex-launch.agent")

ADOPTION_SECONDS = 30.0
# As long as it is not known who carries what nothing new is started.
UNCLEAR_SECONDS = 10.0
# One look for launches to adopt may fail or take its time; after that nobody knows any more.
CLEAR_SECONDS = 75.0
# What a claim takes unless W&B is away; an item that waited in vain returns to its queue by its lease.
CLAIM_SECONDS = 5.0
# After this an item that was popped and not claimed is anybody's again.
ITEM_LEASE_SECONDS = 60.0

StartLaunch = Callable[[FlowRun, LaunchSession], "asyncio.Task[State[Any]]"]


class Found(Enum):
    """What one look for work has found."""

    ITEM = auto()
    EMPTY_QUEUE = auto()
    NO_SLOT = auto()


@dataclass(slots=True)
class Tally:
    """What one agent did."""

    launched: int = 0
    adopted: int = 0
    handed_over: int = 0
    ends: Counter[str] = field(default_factory=Counter[str])

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.launched + other.launched,
            self.adopted + other.adopted,
            self.handed_over + other.handed_over,
            self.ends + other.ends,
        )

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.ends.items())) or "none ended"
        return f"{self.launched} launched, {self.adopted} adopted, {self.handed_over} handed over; {ends}."


class QueueServer:
    """One agent's work on one queue.

    `wake` is set whenever there may be something to do before the next look; `mendings` are the agent's;
    `start` starts a launch's flow run. Whatever goes wrong with one item stays with that item.
    """

    def __init__(
        self,
        session: LaunchSession,
        client: PrefectClient,
        *,
        agent_run_id: UUID,
        wake: asyncio.Event,
        mendings: Mendings,
        start: StartLaunch = start_launch,
    ) -> None:
        block = session.block
        self.session = session
        self.tally = Tally()
        self.agent_id: str | None = None
        self._wake = wake
        self._start_launch = start
        self._clock: Clock = session.clock
        self._runs = LaunchRuns(
            client,
            block_name=session.block_name,
            entity=block.entity,
            queue=block.queue,
            owner_id=agent_run_id,
            clock=self._clock,
        )
        self._slots, self._scheduler_slots = (
            make(
                block,
                client,
                holder_id=agent_run_id,
                clock=self._clock,
                mending_of=partial(mendings.of, self._runs.slots_noted),
                taken=self._runs.taken,
            )
            for make in (slots_of, scheduler_slots_of)
        )
        self._carried: dict[str, asyncio.Task[None]] = {}
        # The carried launches, until Prefect has their final states.
        self._lives: dict[str, LiveLaunch] = {}
        # An item whose flow run could not be made: it is ours until its lease ends.
        self._held: PoppedItem | None = None
        self._held_until = -inf
        # Asked for while an item is being started: in a burst the next one need not wait for it.
        self._next_slot: asyncio.Task[Slot | None] | None = None
        # When it was last clear which launches are left to adopt, and when all that were left were adopted.
        self._clear_at = -inf
        self._adopted_at = -inf
        # When one was last left whose job may run and have no slot.
        self._left_at = -inf
        self._others = Others(self._runs, self._slots)
        # A flow run that is just being made must not look like one that nobody carries.
        self._booking = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether a launch is under way, or one is owed a slot."""
        return bool(self._carried or self._slots.owed)

    async def prepare(self) -> None:
        """Make sure of the queue's limits. Raises NotFound for a shared limit that is not there."""
        await self._slots.ensure_limit()
        await self._scheduler_slots.ensure_limit()

    @contextlib.asynccontextmanager
    async def slots_renewed(self) -> AsyncIterator[None]:
        """Keep the leases of all slots while the body runs."""
        async with (
            in_background(self._slots.keep_renewed, "slot renewal", self._clock),
            in_background(self._scheduler_slots.keep_renewed, "scheduler slot renewal", self._clock),
        ):
            yield

    async def start_next(self) -> Found:
        """Take a slot and then an item, and start its launch.

        Raises LaunchError or httpx.HTTPError when W&B or Prefect cannot be asked.
        """
        if not self.session.is_sure:
            await self._release_next_slot()
            return Found.NO_SLOT
        is_settled = await self._settle()
        if not is_settled or not self._knows_who_carries_what():
            await self._release_next_slot()
            return Found.NO_SLOT
        slot = await self._take_slot()
        if slot is None:
            return Found.NO_SLOT
        is_begun = False
        try:
            popped = await self._next_item()
            if popped is None:
                return Found.EMPTY_QUEUE
            await self._until_claimed(popped.item_id)
            self.session.calm.clear()
            if not self.session.block.shared_limits:  # there the next slot is another queue's turn
                self._next_slot = asyncio.create_task(self._slots.try_take())
            async with self._booking:
                is_begun = True
                await self._begin(popped, slot)
            self._held = None
            return Found.ITEM
        finally:
            if not is_begun:
                await self._slots.release(slot)

    async def has_shared_room(self) -> bool:
        """Whether the limits that the queue shares have room, so that only its own one can be full."""
        return await self._slots.has_shared_room()

    async def try_to_adopt(self) -> None:
        """Carry on what another agent left, if Prefect can be asked what that is."""
        try:
            async with self._booking:
                await self._adopt()
        except PREFECT_FAILURES as error:
            logger.warning("Prefect could not be asked for unfinished launches: %s", error)

    def _knows_who_carries_what(self) -> bool:
        """Whether no launch can be under way unattended, with its slot given to another one."""
        is_recent = self._clock.monotonic() - self._clear_at <= CLEAR_SECONDS
        return is_recent and self._clear_at > self._left_at

    async def keep_adopting(self) -> None:
        """Look for launches that nobody carries, for ever."""
        while True:
            is_clear = self._knows_who_carries_what()
            await self._clock.sleep(ADOPTION_SECONDS if is_clear else min(ADOPTION_SECONDS, UNCLEAR_SECONDS))
            await self.try_to_adopt()
            try:
                await self.let_go_of_others()
                if self.session.is_sure:
                    await self._settle()
                await self._slots.mend()
                await self._scheduler_slots.mend()
            except (*PREFECT_FAILURES, NotFound) as error:
                logger.warning("Prefect could not be asked for launches and slots: %s", error)

    async def hand_over(self) -> None:
        """Leave every launch whose job is under way to the next agent; jobs are not touched."""
        self.session.calm.set()
        for live in [*self._lives.values()]:
            live.leave.set()
        with contextlib.suppress(*PREFECT_FAILURES):  # its lease ends by itself
            await self._release_next_slot()
        while carried := {task for task in self._carried.values() if not task.done()}:
            await asyncio.wait(carried)

    async def _take_slot(self) -> Slot | None:
        """Return the slot that was asked for while the last item was started, else ask now."""
        asked, self._next_slot = self._next_slot, None
        return await (asked or self._slots.try_take())

    async def _release_next_slot(self) -> None:
        if self._next_slot is not None and (slot := await self._take_slot()) is not None:
            await self._slots.release(slot)

    async def _until_claimed(self, item_id: str) -> None:
        """Let a launch of this item that was adopted find out that the item's lease had ended meanwhile.

        It ends then, and goes on with the lease that the item has now.
        """
        live = self._lives.get(item_id)
        if live is not None and live.run is None:
            await asyncio.wait({self._carried[item_id]}, timeout=CLAIM_SECONDS)

    async def _next_item(self) -> PoppedItem | None:
        """Return the item whose launch could not be made, unless its lease has ended, else the next one."""
        now = self._clock.monotonic()
        if self._held is None or now >= self._held_until:
            self._held, self._held_until = await self._pop(), now + ITEM_LEASE_SECONDS
        return self._held

    async def _pop(self) -> PoppedItem | None:
        # Dying after this line costs the item its lease, a minute, and nothing else.
        try:
            return await self.session.wandb.pop(self.agent_id)
        except LaunchError:
            # W&B keeps everybody waiting who has a slot in hand, which is counted and no launch's yet.
            self._slots.start_mending_over()
            raise

    async def _begin(self, popped: PoppedItem, slot: Slot) -> None:
        """Start the launch of an item under `slot`, or give that back.

        That is done before a launch can be adopted here: one that was made without an answer notes this
        slot, and must not be taken for one that has it while it is on its way back.
        """
        is_started = False
        try:
            is_started = await self._start_under(popped, slot)
        finally:
            if not is_started and self.session.is_sure:
                await self._slots.release(slot)
            elif not is_started:
                # Its launch may have been made with this slot, and another agent goes on with both.
                self._slots.forget(slot)

    async def _start_under(self, popped: PoppedItem, slot: Slot) -> bool:
        """Start the launch of an item; return whether `slot` goes with it, here or with another agent.

        It does not if another agent carries it already, or if it is a sweep scheduler, which counts under
        a limit of its own.
        """
        item = QueueItem.from_popped(popped)
        if item.item_id in self._carried:
            # The answer to its creation was lost, and it was adopted since.
            return False
        labels = {} if item.is_scheduler else self._slots.labels_of(slot)
        config = preparation.configuration(self.session, item)
        places = preparation.whereabouts(self.session, config)
        began = self._clock.monotonic()
        flow_run = await self._runs.create(item, places, labels)
        if flow_run is None:
            return False
        if await self._has_gone_on(flow_run, began):
            # It notes this slot, which another agent may go on with.
            self._slots.forget(slot)
            return True
        self.tally.launched += 1
        live = self._live(item, flow_run, config, popped.api_key)
        if item.is_scheduler:
            slots = self._scheduler_slots
            owed = slots.owe()
            slots.give(owed, flow_run.id, flow_run.labels)
            self._carry(flow_run, live, slots, owed)
            return False
        self._slots.give(slot, flow_run.id, flow_run.labels)
        self._carry(flow_run, live, self._slots, slot)
        return True

    async def _has_gone_on(self, flow_run: FlowRun, since: float) -> bool:
        """Whether a launch that was ours at a time that is not just now is another's since, or has ended."""
        is_old = self._clock.monotonic() - since > FRESH_SECONDS
        return is_old and await self._runs.has_gone_on(flow_run.id)

    def _live(
        self, item: QueueItem, flow_run: FlowRun, config: QueueConfig | None, api_key: SecretStr | None = None
    ) -> LiveLaunch:
        live = LiveLaunch(
            item,
            flow_run.id,
            api_key=api_key,
            config=config,
            may_have_job=flow_run.run_count > 0,
            may_have_twin=marks.MAY_HAVE_TWIN in flow_run.labels,
            whereabouts=whereabouts_of(flow_run.labels),
            created=flow_run.created,
        )
        if marks.CANCELLED in flow_run.labels:
            live.request_stop(StopRequest(Requester.PREFECT, self._clock.now(), grace_seconds=0.0))
        return live

    def _carry(self, flow_run: FlowRun, live: LiveLaunch, slots: Slots, slot: Slot) -> None:
        item_id = live.item.item_id
        live.slot = slot
        if slot.is_held:  # else what it has running goes on, and a new job has to wait
            slot.admits.set()
        self.session.live[item_id] = live
        self._lives[item_id] = live
        self._carried[item_id] = asyncio.create_task(self._see_through(flow_run, live, slots))

    async def _settle(self) -> bool:
        """Get owed slots their leases, and let launches start that have one; return whether none is owed.

        Raises httpx.HTTPError when Prefect cannot be asked.
        """
        await self._scheduler_slots.settle()
        is_settled = await self._slots.settle()
        may_jobs_start = self._is_every_job_counted()
        for live in self._lives.values():
            if live.slot.is_held and (may_jobs_start or live.item.is_scheduler):
                live.slot.admits.set()
        return is_settled

    def _is_every_job_counted(self) -> bool:
        """Whether every job that may run has its slot, of those launches that were this agent's.

        Launches that have no job do not wait for each other.
        """
        waiting = {live.slot for live in self._lives.values() if live.is_waiting_for_slot}
        is_recent = self._clock.monotonic() - self._adopted_at <= CLEAR_SECONDS
        is_all_here = is_recent and self._adopted_at > self._left_at
        return is_all_here and waiting.issuperset(self._slots.unsure)

    async def _see_through(self, flow_run: FlowRun, live: LiveLaunch, slots: Slots) -> None:
        """Follow one launch to its end; give its slot back when no job of it is under way any more.

        The slot of a launch that is left goes with it.
        """
        launch_task = self._start_launch(flow_run, self.session)
        job_ended = asyncio.create_task(live.job_ended.wait())
        try:
            await asyncio.wait({launch_task, job_ended}, return_when=asyncio.FIRST_COMPLETED)
            if live.job_ended.is_set() and not live.leave.is_set():
                await self._give_back(live, slots)
            self._wake.set()
            state = await launch_task
            if state.is_final():
                await self._give_back(live, slots)
            self.tally.ends[(state.name or state.type.value).lower()] += 1
        except Abort:
            self.tally.handed_over += 1
            # Another agent may have taken it, or ended it even: nothing is written over what that one wrote.
            if self.session.is_sure and not live.is_anothers:
                await self._leave(flow_run)
        except Exception:
            # Its flow run is not in a final state: the next adoption pass starts it again, with its slot.
            logger.exception("The launch of item %s was interrupted", live.item.item_id)
        finally:
            if not live.job_ended.is_set() and live.slot in slots.unsure:
                self._left_at = self._clock.monotonic()
            slots.forget(live.slot)
            job_ended.cancel()
            self.session.live.pop(live.item.item_id, None)
            self._carried.pop(live.item.item_id, None)
            self._lives.pop(live.item.item_id, None)
            self._wake.set()

    async def _give_back(self, live: LiveLaunch, slots: Slots) -> None:
        """Give a slot back, unless it has gone with the launch to another agent, or may have."""
        if await self.session.until_sure(live):
            await slots.release(live.slot)

    async def _leave(self, flow_run: FlowRun) -> None:
        """Mark a launch as one to adopt. Left unmarked it is found too, once this agent's run has ended."""
        try:
            await self._runs.hand_over(flow_run.id)
        except PREFECT_FAILURES as error:
            logger.warning("The launch %s could not be marked for adoption: %s", flow_run.name, error)

    async def _adopt(self) -> None:
        looked = self._clock.monotonic()
        carried = {live.flow_run_id for live in self._lives.values()}
        orphans = {orphan.id: orphan for orphan in await self._runs.find_orphans(carried)}
        items = {
            orphan.id: QueueItem.model_validate(orphan.parameters["item"]) for orphan in orphans.values()
        }
        wanted = [orphan for orphan in orphans.values() if items[orphan.id].item_id not in self._carried]
        left_count = len(wanted)
        for flow_run in await self._runs.adopt(wanted):
            item = items[flow_run.id]
            config = preparation.configuration(self.session, item)
            live = self._live(item, flow_run, config)
            await self._runs.note_whereabouts(flow_run, preparation.whereabouts(self.session, config))
            slots = self._scheduler_slots if item.is_scheduler else self._slots
            slot = await slots.take_over(flow_run.labels, flow_run.id)
            with contextlib.ExitStack() as undo:
                # Also if that cannot be asked: the next pass takes it over again.
                undo.callback(slots.forget, slot)
                if await self._has_gone_on(flow_run, looked):
                    continue
                undo.pop_all()
            if self._held is not None and self._held.item_id == item.item_id:
                self._held = None  # the answer to its creation was lost: this is its launch
            logger.info("Adopted the launch %s of item %s", flow_run.name, item.item_id)
            self.tally.adopted += 1
            self._carry(flow_run, live, slots, slot)
            left_count -= 1

        is_covered = await self._others.are_covered(looked)
        # One that another agent was quicker to adopt may be owed a slot there, as the next look will tell.
        if not left_count and not any(self._runs.is_own(run) for run in self._runs.others):
            self._adopted_at = looked
        if not left_count and is_covered:
            self._clear_at = looked

    async def let_go_of_others(self) -> None:
        """Leave the launches that another agent has taken over. Raises httpx.HTTPError.

        One whose flow run was deleted, or ended by hand, is seen through all the same: its job runs.
        """
        by_flow_run = {live.flow_run_id: live for live in self._lives.values() if not live.is_anothers}
        runs = await self._runs.read(set(by_flow_run))
        for run in runs:
            live = by_flow_run[run.id]
            if not self._runs.is_own(run):
                self._leave_to_another(live)
            elif run.state is not None and run.state.is_cancelled() and not live.job_ended.is_set():
                live.request_stop(StopRequest(Requester.PREFECT, self._clock.now(), grace_seconds=0.0))

    def _leave_to_another(self, live: LiveLaunch) -> None:
        logger.warning("The launch of item %s is another agent's now", live.item.item_id)
        live.is_anothers = True
        live.leave.set()
        self._left_at = self._clock.monotonic()
        for slots in (self._slots, self._scheduler_slots):
            slots.forget_launch(live.flow_run_id)
