"""The slots of the global concurrency limits that a queue's jobs count under: `max_jobs`, and shared ones.

One slot is a place under all of them at once, taken and given back as a whole.

Prefect's own `concurrency()` keeps one thread for each held slot and parks whoever waits. Here one
task renews all leases, and taking a slot never blocks: the agent tries again on its next pass.

A slot goes with its launch: the lease is noted on the launch's flow run, and an agent that adopts the
launch goes on with it. So a lease outlives an agent for longer than it takes to adopt its launches.
A lease that is lost never touches the job it stood for. It is taken again when there is room, and
nothing new starts until then. A Prefect server that was restarted has forgotten the leases it kept in
memory but not how many slots were taken: a lease that is gone before its time is still counted, and its
slot is held without it. What is counted and nobody's is taken off once it has been so for long enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse
from prefect.exceptions import ObjectNotFound

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.coordination.counter import take_off
from prefect_vertex_launch.coordination.launch_record import (
    GIVEN_BACK,
    LEASE_LABEL,
    NO_SLOT,
    SCHEDULER_LEASE_LABEL,
    lease_of,
    slot_labels,
)
from prefect_vertex_launch.coordination.limit_size import ensure_size
from prefect_vertex_launch.coordination.mending import Mending
from prefect_vertex_launch.coordination.side_by_side import side_by_side
from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.errors import NotFound, Problem
from prefect_vertex_launch.core.shared_limit import SHARED_LIMIT_PREFIX

logger = clean_log(__name__)


# The mending of a limit under which launches count, by the label with which they note that.
MendingOf = Callable[[str, str], Mending]
Taken = Callable[[set[UUID]], Awaitable[set[UUID]]]

UNLIMITED = -1
# An agent is taken for gone a minute and a half after its last heartbeat, and its launches are adopted
# within another: leases last until then, whenever they were renewed.
LEASE_SECONDS = 300.0
RENEWAL_SECONDS = 100.0


class QueueSlots:
    """The slots of one queue: those of its jobs, and those of its sweep schedulers, which are no jobs."""

    def __init__(
        self,
        block: VertexLaunchQueue,
        client: PrefectClient,
        *,
        holder_id: UUID,
        clock: Clock,
        mending_of: MendingOf | None = None,
        taken: Taken | None = None,
    ) -> None:
        self.jobs, self.schedulers = (
            Slots(
                client,
                limit_name,
                most,
                shared_limits=shared_limits,
                clock=clock,
                holder_id=holder_id,
                label=label,
                mending_of=mending_of,
                taken=taken,
            )
            for limit_name, most, shared_limits, label in (
                (block.identity.limit_name, block.max_jobs, block.shared_limits, LEASE_LABEL),
                (block.identity.scheduler_limit_name, block.max_schedulers, (), SCHEDULER_LEASE_LABEL),
            )
        )

    def of(self, *, is_scheduler: bool) -> Slots:
        """Return the slots of sweep schedulers, or those of jobs."""
        return self.schedulers if is_scheduler else self.jobs

    async def ensure_limits(self) -> None:
        """Create the limits; raises what `Slots.ensure_limit` raises."""
        await self.jobs.ensure_limit()
        await self.schedulers.ensure_limit()

    async def resize(self, block: VertexLaunchQueue) -> None:
        """Go on with the sizes of the limits that a block has by now. Raises httpx.HTTPError."""
        await self.jobs.resize(block.max_jobs)
        await self.schedulers.resize(block.max_schedulers)

    async def mend(self) -> None:
        """Take off the counters of the limits what has long been counted for no launch."""
        await self.jobs.mend()
        await self.schedulers.mend()

    def forget_launch(self, flow_run_id: UUID) -> None:
        """Leave the slot of a launch to whoever goes on with it."""
        self.jobs.forget_launch(flow_run_id)
        self.schedulers.forget_launch(flow_run_id)


class Slots:
    """The slots that one agent holds under a limit of its own and under shared ones.

    `max_jobs` -1 means no limit of its own; without a shared one every slot is granted then and Prefect
    is not asked. `shared_limits` are global concurrency limits that somebody made. `label` is that of a
    flow run which notes the lease of its slot. `mending_of` gives the mending of a limit under which nothing
    but launches counts; `taken` tells which of some launches' flow runs another agent has taken over, with
    their slots.
    """

    def __init__(
        self,
        client: PrefectClient,
        limit_name: str,
        max_jobs: int,
        *,
        clock: Clock,
        shared_limits: Sequence[str] = (),
        holder_id: UUID | None = None,
        label: str = LEASE_LABEL,
        mending_of: MendingOf | None = None,
        taken: Taken | None = None,
    ) -> None:
        self._client = client
        self._limit_name = limit_name
        self._max_jobs = max_jobs
        own = [] if max_jobs == UNLIMITED else [limit_name]
        self._limit_names = list(dict.fromkeys([*own, *shared_limits]))
        self._shared_limits = tuple(shared_limits)
        self._clock = clock
        self._label = label
        self._taken = taken
        self._mendings = [
            mending_of(name, label)
            for name in self._limit_names
            if mending_of and (name == limit_name or name.startswith(SHARED_LIMIT_PREFIX))
        ]
        for mending in self._mendings:
            mending.unnoted.append(self._count_unnoted)
        self._holder = ConcurrencyLeaseHolder(type="flow_run", id=holder_id) if holder_id else None
        # A dict for its order: renewals and what is owed go by who came first.
        self._slots: dict[Slot, None] = {}
        self._settling = asyncio.Lock()
        # Given back, while the launch that notes it goes on without a job.
        self._released: dict[Slot, None] = {}

    @property
    def owed(self) -> list[Slot]:
        """The slots of launches that run without one: adopted, or their lease was lost."""
        return [slot for slot in self._slots if not slot.is_held]

    @property
    def unsure(self) -> list[Slot]:
        """The slots that are owed, or that may be somebody else's by now."""
        now = self._clock.monotonic()
        return [slot for slot in self._slots if not slot.is_held or slot.may_have_ended(now)]

    async def ensure_limit(self) -> None:
        """Create the limit, or set it to `max_jobs` if the block had another number before.

        Raises NotFound when there is no shared limit of a name.
        """
        if self._max_jobs != UNLIMITED:
            await ensure_size(self._client, self._limit_name, self._max_jobs)
        for name in self._shared_limits:
            try:
                await self._client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound as error:
                raise NotFound(
                    Problem(
                        "block.shared_limits",
                        f"Prefect has no global concurrency limit {name!r}",
                        why="the queue's jobs are to count under it",
                        fix=f"Create it: prefect gcl create {name} --limit N; or take it out of the block.",
                    )
                ) from error

    async def resize(self, max_jobs: int) -> None:
        """Go on with another size of the limit, if there is and was one. Raises httpx.HTTPError."""
        if UNLIMITED not in {max_jobs, self._max_jobs} and max_jobs != self._max_jobs:
            self._max_jobs = max_jobs
            await self.ensure_limit()

    async def has_shared_room(self) -> bool:
        """Whether every shared limit has a free slot. Raises httpx.HTTPError when Prefect cannot be asked."""
        for name in self._shared_limits:
            limit = await self._client.read_global_concurrency_limit_by_name(name)
            if limit.active_slots >= limit.limit:
                return False
        return True

    async def try_take(self) -> Slot | None:
        """Take a slot if one is free, else return None at once.

        Raises httpx.HTTPError when Prefect cannot be reached.
        """
        slot = Slot()
        if not await self._acquire(slot):
            return None
        self._slots[slot] = None
        return slot

    def labels_of(self, slot: Slot) -> dict[str, str]:
        """Return the labels of a launch's flow run by which the next agent finds its slot."""
        return {} if slot.lease_id is None else self._labels(slot.text)

    def owe(self) -> Slot:
        """Return the slot of a launch that is to have one; `settle` gets it its lease."""
        slot = Slot()
        self._slots[slot] = None
        return slot

    def give(self, slot: Slot, flow_run_id: UUID, labels: Mapping[str, object]) -> None:
        """Let a slot be that of a launch, whose flow run has these labels."""
        slot.flow_run_id, slot.noted = flow_run_id, str(labels.get(self._label, NO_SLOT))

    async def take_over(self, labels: Mapping[str, object], flow_run_id: UUID) -> Slot:
        """Return the slot of a launch that another agent began: with its lease, or else it is owed one.

        `labels` are those of its flow run. Raises httpx.HTTPError when Prefect cannot be reached.
        """
        slot = Slot(lease_of(labels, self._label))
        self.give(slot, flow_run_id, labels)
        self.start_mending_over()
        if slot.lease_id is not None and not await self._renew_lease(slot, slot.lease_id):
            slot.lease_id = None
        self._slots[slot] = None
        return slot

    async def renew_of_another(self, lease_id: UUID | None) -> bool:
        """Renew the slot of a launch that another agent carries; return whether it has one.

        Until the lease ends that agent is missed, should it be gone. Raises httpx.HTTPError when Prefect
        cannot be reached.
        """
        if lease_id is None:
            return not self._limit_names
        return await self._renew_lease(Slot(), lease_id)

    async def settle(self) -> bool:
        """Try to get every owed slot its lease; return whether none is owed any more.

        Raises httpx.HTTPError when Prefect cannot be reached, be it only for a lease that may have ended.
        """
        async with self._settling:
            return await self._settle()

    async def _settle(self) -> bool:
        now = self._clock.monotonic()
        for slot in [slot for slot in self._slots if slot.may_have_ended(now)]:
            await self._renew(slot)
        # A launch that notes a lease which is gone would be taken for one that has a slot.
        for slot in [*self._slots]:
            await self._note(slot)
        for slot in self.owed:
            if slot not in self._slots or slot.is_held:
                continue  # its launch has ended or gone meanwhile, or has got one
            if not await self._acquire(slot):
                return False
            if slot in self._slots:
                await self._note(slot)
            else:
                await self._give_back(slot)
        return True

    def is_given_back(self, labels: Mapping[str, object]) -> bool:
        """Whether a launch has given its slot back already, as its flow run notes it."""
        return labels.get(self._label) == GIVEN_BACK

    def start_mending_over(self) -> None:
        """Something goes wrong: a slot may be counted for it, and nobody's, for a while."""
        for mending in self._mendings:
            mending.start_over()

    async def mend(self) -> None:
        """Take off the limits' counters what has long been counted and is nobody's.

        To be called every minute or so. Raises httpx.HTTPError when Prefect cannot be reached. Under a
        limit that others use as well nobody can tell.
        """
        # A launch that notes a lease which is gone would be taken for one that has a slot.
        for slot in [*self._slots, *self._released]:
            await self._note(slot)
        for slot in [slot for slot in self._slots if slot.is_counted]:
            if not await self._lease_counted(slot):
                break
        for mending in self._mendings:
            await mending.mend()

    def forget(self, slot: Slot) -> None:
        """Leave a slot, as it is, to whoever goes on with its launch, if anybody does."""
        self._slots.pop(slot, None)
        self._released.pop(slot, None)

    def forget_launch(self, flow_run_id: UUID) -> None:
        """Leave the slot of a launch, if it is here, to whoever goes on with it."""
        for slot in [*self._slots, *self._released]:
            if slot.flow_run_id == flow_run_id:
                self.forget(slot)

    async def release(self, slot: Slot) -> None:
        """Give a slot back. If Prefect cannot be reached the lease ends by itself."""
        self._slots.pop(slot, None)
        if slot.flow_run_id is not None:
            self._released[slot] = None
        await self._give_back(slot)

    async def leave(self, slot: Slot) -> None:
        """Give a slot back, unless another agent goes on with its launch or that cannot be known now."""
        try:
            is_taken = await self._is_taken(slot)
        except httpx.HTTPError as error:
            logger.warning("A slot of %s is left to its lease: %s", self._limit_name, error)
            self.forget(slot)
            return
        if is_taken:
            self.forget(slot)
        else:
            await self.release(slot)

    def _count_unnoted(self, noted: AbstractSet[UUID]) -> int:
        """Return how many slots are held here for nobody yet, or for a launch that is not among `noted`."""
        return sum(slot.is_held and slot.flow_run_id not in noted for slot in self._slots)

    async def _give_back(self, slot: Slot) -> None:
        if not slot.is_held or not self._limit_names:
            return
        lease_id, slot.lease_id, slot.is_counted = slot.lease_id, None, False
        try:
            if lease_id is not None:
                await self._client.release_concurrency_slots_with_lease(lease_id=lease_id)
            else:
                await take_off(
                    self._client, self._limit_names, 1, occupancy_seconds=LEASE_SECONDS, clock=self._clock
                )
        except httpx.HTTPError as error:
            self.start_mending_over()
            ends = "its lease ends by itself" if lease_id else "it stays counted until it is noticed"
            logger.warning("A slot of %s could not be given back (%s); %s", self._limit_name, error, ends)

    async def keep_renewed(self) -> None:
        """Renew every lease, for ever; one that is gone becomes owed."""
        while True:
            await self._clock.sleep(RENEWAL_SECONDS)
            leased = [slot for slot in self._slots if slot.lease_id is not None]
            # Side by side: while calls are slow, the last one's lease must not end before its turn.
            await side_by_side(self._try_to_renew, leased)

    async def _try_to_renew(self, slot: Slot) -> None:
        try:
            if slot in self._slots:
                await self._renew(slot)
        except httpx.HTTPError as error:
            logger.warning("A slot of %s could not be renewed: %s", self._limit_name, error)

    async def _renew(self, slot: Slot) -> None:
        """Renew the lease of a slot; one that is gone becomes counted without it, or owed."""
        lease_id = slot.lease_id
        if lease_id is None or await self._renew_lease(slot, lease_id):
            return
        # A lease that is gone before its time was forgotten; what no launch notes is taken off in time.
        is_counted = slot.noted == str(lease_id) and not self._has_ended(slot)
        if await self._is_taken(slot):
            # Whoever has the launch may have given it back.
            self.forget(slot)
            slot.lease_id = None
            slot.admits.clear()
        elif slot.lease_id == lease_id:  # else it was given back meanwhile, or has a new one
            logger.warning("Prefect no longer knows a slot of %s", self._limit_name)
            slot.lease_id, slot.is_counted = None, is_counted
            if not is_counted:
                slot.admits.clear()

    async def _renew_lease(self, slot: Slot, lease_id: UUID) -> bool:
        """Renew a lease, and note in its slot when that was asked for; return whether there is one."""
        if not self._limit_names:
            return True
        sent = self._clock.monotonic()
        try:
            await self._client.renew_concurrency_lease(lease_id, lease_duration=LEASE_SECONDS)
        except httpx.HTTPError as error:
            if _status_of(error) in {404, 410}:
                return False
            self.start_mending_over()
            raise
        _note_renewal(slot, sent)
        return True

    def _has_ended(self, slot: Slot) -> bool:
        """Whether the lease of a slot may have ended by itself, since it was renewed."""
        return slot.renewed is None or self._clock.monotonic() - slot.renewed >= LEASE_SECONDS

    async def _is_taken(self, slot: Slot) -> bool:
        if self._taken is None or slot.flow_run_id is None:
            return False
        return slot.flow_run_id in await self._taken({slot.flow_run_id})

    async def _acquire(self, slot: Slot) -> bool:
        if not self._limit_names:
            slot.lease_id = UUID(int=0)
            return True
        sent = self._clock.monotonic()
        try:
            response = await self._client.increment_concurrency_slots_with_lease(
                names=self._limit_names,
                slots=1,
                mode="concurrency",
                lease_duration=LEASE_SECONDS,
                holder=self._holder,
            )
        except httpx.HTTPError as error:
            if _status_of(error) == httpx.codes.LOCKED:  # the limit is full
                return False
            self.start_mending_over()
            raise
        granted = ConcurrencyLimitWithLeaseResponse.model_validate(response.json())
        slot.lease_id = granted.lease_id
        _note_renewal(slot, sent)
        if missing := set(self._limit_names) - {limit.name for limit in granted.limits}:
            # Someone deleted a limit; without it Prefect would grant any number of slots.
            logger.warning("Prefect has no concurrency limit %s any more", ", ".join(sorted(missing)))
            await self._give_back(slot)
            await self.ensure_limit()
            return False
        return True

    async def _lease_counted(self, slot: Slot) -> bool:
        """Give a slot that is counted without a lease a lease again; return whether there was room for both.

        Agents that begin see by its lease that the launch has a slot; without it they start nothing new.
        """
        leased = Slot()
        if not await self._acquire(leased):
            return False
        if slot not in self._slots or not slot.is_counted:
            await self._give_back(leased)  # its launch has ended meanwhile
            return True
        slot.lease_id, slot.is_counted = leased.lease_id, False
        slot.renewed, slot.sure_until = leased.renewed, leased.sure_until
        await self._give_back(Slot(is_counted=True))
        await self._note(slot)
        return True

    def _labels(self, text: str) -> dict[str, str]:
        return slot_labels(self._label, text, self._limit_names)

    async def _note(self, slot: Slot) -> None:
        """Note the lease on the launch's flow run, or that it is gone."""
        if slot.flow_run_id is None or slot.is_counted:
            return
        if slot not in self._slots and slot not in self._released:
            return  # it went with its launch meanwhile
        text = GIVEN_BACK if slot in self._released else slot.text
        if text == slot.noted:
            return
        labels = self._labels(text)
        try:
            await self._client.update_flow_run_labels(slot.flow_run_id, {**labels})
        except httpx.HTTPStatusError as error:
            if _status_of(error) != httpx.codes.NOT_FOUND:
                raise  # else somebody has deleted it, and its job is seen through all the same
        slot.noted = text


def _note_renewal(slot: Slot, sent: float) -> None:
    slot.renewed, slot.sure_until = sent, sent + 2 * RENEWAL_SECONDS


def _status_of(error: httpx.HTTPError) -> int | None:
    return error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
