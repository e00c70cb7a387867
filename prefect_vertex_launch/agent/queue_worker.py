"""One queue, as an agent serves it: take a slot, take an item, start its launch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import Enum, auto
from functools import partial
from math import inf
from uuid import UUID

from prefect.client.orchestration import PrefectClient

from prefect_vertex_launch.agent.adoption import Adoption
from prefect_vertex_launch.agent.supervisor import StartLaunch, Supervisor
from prefect_vertex_launch.agent.tally import Tally
from prefect_vertex_launch.coordination.launch_store import LaunchStore, NotKept
from prefect_vertex_launch.coordination.mending import Mendings
from prefect_vertex_launch.coordination.prefect_api import expected_or_told
from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.coordination.slots import QueueSlots
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.errors import LaunchError
from prefect_vertex_launch.core.secrets import own_secrets
from prefect_vertex_launch.core.unforeseen import unforeseen
from prefect_vertex_launch.launch import render
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.queue_context import QueueContext
from prefect_vertex_launch.wandb.queue import PoppedItem

logger = clean_log("prefect.vertex-launch.agent")

ADOPTION_SECONDS = 30.0
# As long as it is not known who carries what nothing new is started.
UNCLEAR_SECONDS = 10.0
# After this an item that was popped and not claimed is anybody's again.
ITEM_LEASE_SECONDS = 60.0


class Found(Enum):
    """What one look for work has found."""

    ITEM = auto()
    EMPTY_QUEUE = auto()
    NO_SLOT = auto()


class QueueWorker:
    """One agent's work on one queue.

    `wake` is set whenever there may be something to do before the next look; `mendings` are the agent's;
    `start` starts a launch's flow run. Whatever goes wrong with one item stays with that item.
    """

    def __init__(
        self,
        context: QueueContext,
        client: PrefectClient,
        *,
        agent_run_id: UUID,
        wake: asyncio.Event,
        mendings: Mendings,
        start: StartLaunch,
    ) -> None:
        self.context = context
        self.agent_id: str | None = None
        self._clock: Clock = context.clock
        self._store = store = LaunchStore(
            client,
            block_name=context.block_name,
            queue=context.block.identity,
            owner_id=agent_run_id,
            clock=context.clock,
        )
        self._slots = QueueSlots(
            context.block,
            client,
            holder_id=agent_run_id,
            clock=context.clock,
            mending_of=partial(mendings.of, store.with_slot),
            taken=store.taken,
        )
        self._supervisor = Supervisor(context, store, wake=wake, start=start)
        self._adoption = Adoption(context, store, self._slots, self._supervisor)
        # An item whose flow run could not be made: it is ours until its lease ends.
        self._held: PoppedItem | None = None
        self._held_until = -inf
        # Asked for while an item is being started: in a burst the next one need not wait for it.
        self._next_slot: asyncio.Task[Slot | None] | None = None
        # A flow run that is just being made must not look like one that nobody carries.
        self._booking = asyncio.Lock()

    @property
    def tally(self) -> Tally:
        """What was done."""
        return self._supervisor.tally

    @property
    def is_busy(self) -> bool:
        """Whether a launch is under way, or one is owed a slot."""
        return bool(len(self._supervisor) or self._slots.jobs.owed)

    async def prepare(self) -> None:
        """Make sure of the queue's limits. Raises NotFound for a shared limit that is not there."""
        await self._slots.ensure_limits()

    @contextlib.asynccontextmanager
    async def slots_renewed(self) -> AsyncIterator[None]:
        """Keep the leases of all slots, and the sizes that the block gives them, while the body runs."""
        self.context.on_new_block = self._slots.resize
        async with (
            in_background(self._slots.jobs.keep_renewed, "slot renewal", self._clock),
            in_background(self._slots.schedulers.keep_renewed, "scheduler slot renewal", self._clock),
        ):
            yield

    async def start_next(self) -> Found:
        """Take a slot and then an item, and start its launch.

        Raises LaunchError or httpx.HTTPError when W&B or Prefect cannot be asked.
        """
        if not self.context.is_sure:
            await self._release_next_slot()
            return Found.NO_SLOT
        is_settled = await self._settle()
        if not is_settled or not self._adoption.is_clear():
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
            await self._supervisor.until_claimed(popped.item_id)
            self.context.burst_is_over.clear()
            if not self.context.block.shared_limits:  # there the next slot is another queue's turn
                self._next_slot = asyncio.create_task(self._slots.jobs.try_take())
            async with self._booking:
                is_begun = True
                await self._begin(popped, slot)
            self._held = None
            return Found.ITEM
        finally:
            if not is_begun:
                await self._slots.jobs.release(slot)

    async def has_shared_room(self) -> bool:
        """Whether the limits that the queue shares have room, so that only its own one can be full."""
        return await self._slots.jobs.has_shared_room()

    async def try_to_adopt(self) -> None:
        """Carry on what another agent left, if Prefect can be asked what that is."""
        try:
            async with self._booking:
                adopted = await self._adoption.adopt()
                if self._held is not None and self._held.item_id in adopted:
                    self._held = None  # the answer to its creation was lost: this is its launch
        except Exception as error:  # noqa: BLE001 - nothing ends an agent; the next pass looks again
            told = expected_or_told(error, where=f"queue {self.context.block_name}", log=logger)
            logger.warning("Prefect could not be asked for unfinished launches: %s", told)

    async def keep_adopting(self) -> None:
        """Look for launches that nobody carries, for ever."""
        while True:
            is_clear = self._adoption.is_clear()
            await self._clock.sleep(ADOPTION_SECONDS if is_clear else min(ADOPTION_SECONDS, UNCLEAR_SECONDS))
            await self.try_to_adopt()
            try:
                await self.let_go_of_others()
                if self.context.is_sure:
                    await self._settle()
                await self._slots.mend()
            except Exception as error:  # noqa: BLE001 - as above
                told = expected_or_told(error, where=f"queue {self.context.block_name}", log=logger)
                logger.warning("Prefect could not be asked for launches and slots: %s", told)

    async def let_go_of_others(self) -> None:
        """Leave the launches that another agent has taken over. Raises httpx.HTTPError."""
        await self._adoption.let_go_of_others()

    async def hand_over(self) -> None:
        """Leave every launch whose job is under way to the next agent; jobs are not touched."""
        self.context.burst_is_over.set()
        self._supervisor.leave_all()
        with contextlib.suppress(Exception):  # its lease ends by itself
            await self._release_next_slot()
        await self._supervisor.until_left()

    async def _take_slot(self) -> Slot | None:
        """Return the slot that was asked for while the last item was started, else ask now."""
        asked, self._next_slot = self._next_slot, None
        return await (asked or self._slots.jobs.try_take())

    async def _release_next_slot(self) -> None:
        if self._next_slot is not None and (slot := await self._take_slot()) is not None:
            await self._slots.jobs.release(slot)

    async def _next_item(self) -> PoppedItem | None:
        """Return the item whose launch could not be made, unless its lease has ended, else the next one."""
        now = self._clock.monotonic()
        if self._held is None or now >= self._held_until:
            self._held, self._held_until = await self._pop(), now + ITEM_LEASE_SECONDS
        return self._held

    async def _pop(self) -> PoppedItem | None:
        # Dying after this line costs the item its lease, a minute, and nothing else.
        try:
            return await self.context.wandb.pop(self.agent_id)
        except LaunchError:
            # W&B keeps everybody waiting who has a slot in hand, which is counted and no launch's yet.
            self._slots.jobs.start_mending_over()
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
            if not is_started and self.context.is_sure:
                await self._slots.jobs.release(slot)
            elif not is_started:
                # Its launch may have been made with this slot, and another agent goes on with both.
                self._slots.jobs.forget(slot)

    async def _start_under(self, popped: PoppedItem, slot: Slot) -> bool:
        """Start the launch of an item; return whether `slot` goes with it, here or with another agent.

        It does not if another agent carries it already, or if it is a sweep scheduler, which counts under
        a limit of its own.
        """
        item = _item_of(popped)
        if item.item_id in self._supervisor:
            # The answer to its creation was lost, and it was adopted since.
            return False
        labels = {} if item.is_scheduler else self._slots.jobs.labels_of(slot)
        config = await render.configuration(self.context, item)
        parents = render.job_parents(self.context, config)
        began = self._clock.monotonic()
        try:
            flow_run = await self._store.create(item.request(), parents, labels)
        except NotKept as error:
            # A run spec that Prefect will not keep is replaced by the reason.
            item, config = QueueItem.unusable(item.item_id, *error.problems), None
            flow_run = await self._store.create(item.request(), parents, labels)
        if flow_run is None:
            return False
        if await self._adoption.has_gone_on(flow_run, began):
            # It notes this slot, which another agent may go on with.
            self._slots.jobs.forget(slot)
            return True
        self.tally.launched += 1
        launch = self._adoption.launch_of(item, flow_run, config, popped.api_key)
        slots = self._slots.of(is_scheduler=item.is_scheduler)
        place = slots.owe() if item.is_scheduler else slot
        slots.give(place, flow_run.id, flow_run.labels)
        self._supervisor.supervise(flow_run, launch, slots, place)
        return not item.is_scheduler

    async def _settle(self) -> bool:
        """Get owed slots their leases, and let launches start that have one; return whether none is owed.

        Raises httpx.HTTPError when Prefect cannot be asked.
        """
        await self._slots.schedulers.settle()
        is_settled = await self._slots.jobs.settle()
        may_jobs_start = self._adoption.is_every_job_counted()
        for launch in self._supervisor.launches.values():
            if launch.slot.is_held and (may_jobs_start or launch.item.is_scheduler):
                launch.slot.admits.set()
        return is_settled


def _item_of(popped: PoppedItem) -> QueueItem:
    """Return a popped item as its flow run keeps it, with the reason in its place if that fails."""
    try:
        return QueueItem.from_popped(popped)
    except Exception as error:  # noqa: BLE001 - the item is failed with it, and the next one goes on
        where = f"item {popped.item_id}"
        told = unforeseen(error, where=where, log=logger, mask=own_secrets.mask)
        return QueueItem.unusable(popped.item_id, *told.problems)
