"""The slots of the global concurrency limits that a queue's jobs count under: `max_jobs`, and shared ones.

One slot is a place under all of them at once, taken and given back as a whole.

Prefect's own `concurrency()` keeps one thread for each held slot and parks whoever waits. Here one
task renews all leases, and taking a slot never blocks: the agent tries again on its next pass.
A slot that is lost (a restarted Prefect server forgets the leases it kept in memory) never touches
the job it stood for: it is taken again when there is room, and nothing new starts until then.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse
from prefect.exceptions import ObjectNotFound

from blocks.vertex_queue import VertexLaunchQueue
from vertex_launch.clock import Clock
from vertex_launch.errors import NotFound, Problem

logger = logging.getLogger(__name__)

UNLIMITED = -1


def slots_of(block: VertexLaunchQueue, client: PrefectClient, *, holder_id: UUID, clock: Clock) -> Slots:
    """Return the slots of a queue's jobs."""
    return Slots(
        client,
        block.limit_name,
        block.max_jobs,
        shared_limits=block.shared_limits,
        clock=clock,
        holder_id=holder_id,
    )


def scheduler_slots_of(
    block: VertexLaunchQueue, client: PrefectClient, *, holder_id: UUID, clock: Clock
) -> Slots:
    """Return the slots of a queue's sweep schedulers, which do not count as jobs."""
    return Slots(client, block.scheduler_limit_name, block.max_schedulers, clock=clock, holder_id=holder_id)


@dataclass(eq=False, slots=True)
class Slot:
    """One place under the limit, for one launch; without a lease while it is owed one."""

    lease_id: UUID | None = None

    @property
    def is_held(self) -> bool:
        """Whether Prefect counts this slot."""
        return self.lease_id is not None


class Slots:
    """The slots that one agent holds under a limit of its own and under shared ones.

    `max_jobs` -1 means no limit of its own; without a shared one every slot is granted then and Prefect
    is not asked. `shared_limits` are global concurrency limits that somebody made. `lease_seconds` is how
    long a slot outlives an agent that died (Prefect accepts 60 to 86,400).
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
        lease_seconds: float = 120.0,
    ) -> None:
        self._client = client
        self._limit_name = limit_name
        self._max_jobs = max_jobs
        own = [] if max_jobs == UNLIMITED else [limit_name]
        self._limit_names = list(dict.fromkeys([*own, *shared_limits]))
        self._shared_limits = tuple(shared_limits)
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._holder = ConcurrencyLeaseHolder(type="flow_run", id=holder_id) if holder_id else None
        self._slots: set[Slot] = set()

    @property
    def owed(self) -> list[Slot]:
        """The slots of launches that run without one: adopted, or their lease was lost."""
        return [slot for slot in self._slots if not slot.is_held]

    async def ensure_limit(self) -> None:
        """Create the limit, or set it to `max_jobs`; repeating it changes nothing.

        Raises NotFound when there is no shared limit of a name.
        """
        if self._max_jobs != UNLIMITED:
            await self._client.upsert_global_concurrency_limit_by_name(self._limit_name, self._max_jobs)
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
        self._slots.add(slot)
        return slot

    def owe(self) -> Slot:
        """Return the slot of a launch that runs already; `settle` gets it its lease."""
        slot = Slot()
        self._slots.add(slot)
        return slot

    async def settle(self) -> bool:
        """Try to get every owed slot its lease; return whether none is owed any more."""
        for slot in self.owed:
            if not await self._acquire(slot):
                return False
        return True

    async def release(self, slot: Slot) -> None:
        """Give a slot back. If Prefect cannot be reached the lease ends by itself."""
        self._slots.discard(slot)
        await self._give_back(slot)

    async def _give_back(self, slot: Slot) -> None:
        if slot.lease_id is None or not self._limit_names:
            return
        lease_id, slot.lease_id = slot.lease_id, None
        try:
            await self._client.release_concurrency_slots_with_lease(lease_id=lease_id)
        except httpx.HTTPError as error:
            logger.warning(
                "A slot of %s could not be given back (%s); its lease ends in at most %.0f s",
                self._limit_name, error, self._lease_seconds,
            )  # fmt: skip

    async def keep_renewed(self) -> None:
        """Renew every lease at half of its time, for ever; a lease that is gone becomes owed."""
        while True:
            await self._clock.sleep(self._lease_seconds / 2)
            for slot in [slot for slot in self._slots if slot.is_held]:
                await self._renew(slot)

    async def _renew(self, slot: Slot) -> None:
        if slot.lease_id is None or not self._limit_names:
            return
        try:
            await self._client.renew_concurrency_lease(slot.lease_id, lease_duration=self._lease_seconds)
        except httpx.HTTPStatusError as error:
            if error.response.status_code in {404, 410}:
                logger.warning("Prefect no longer knows a slot of %s; taking it again", self._limit_name)
                slot.lease_id = None
                await self._acquire(slot)
        except httpx.HTTPError as error:
            logger.warning("A slot of %s could not be renewed: %s", self._limit_name, error)

    async def _acquire(self, slot: Slot) -> bool:
        if not self._limit_names:
            slot.lease_id = UUID(int=0)
            return True
        try:
            response = await self._client.increment_concurrency_slots_with_lease(
                names=self._limit_names,
                slots=1,
                mode="concurrency",
                lease_duration=self._lease_seconds,
                holder=self._holder,
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 423:  # Locked: the limit is full
                return False
            raise
        granted = ConcurrencyLimitWithLeaseResponse.model_validate(response.json())
        slot.lease_id = granted.lease_id
        if missing := set(self._limit_names) - {limit.name for limit in granted.limits}:
            # Someone deleted a limit; without it Prefect would grant any number of slots.
            logger.warning("Prefect has no concurrency limit %s any more", ", ".join(sorted(missing)))
            await self._give_back(slot)
            await self.ensure_limit()
            return False
        return True
