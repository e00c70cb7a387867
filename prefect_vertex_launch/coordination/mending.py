"""Putting right what a concurrency limit counts and nobody holds any more.

A Prefect server that was restarted has forgotten the leases it kept in memory, but not how many slots
were taken. What no launch has noted as its own is nobody's once it has been so for long enough.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from prefect_vertex_launch.coordination.counter import take_off
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock

logger = clean_log(__name__)

# Slots that no launch has noted for so long are nobody's: a lease without a launch ends much sooner.
EXCESS_SECONDS = 900.0
SPREAD_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 3.0


# Tells which launches under way note a slot under a limit, given its name, by a label.
Noted = Callable[[str, str], Awaitable[AbstractSet[UUID]]]


@dataclass(slots=True)
class _Excess:
    """So many more slots at least have been counted than noted; when that is to be corrected."""

    least: int
    due: float


class Mendings:
    """The mending of every limit that the queues of one agent count under."""

    def __init__(self, client: PrefectClient, *, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._by_limit: dict[str, Mending] = {}

    def of(self, noted: Noted, limit_name: str, label: str) -> Mending:
        """Return the one mending of a limit; queues that share a limit share it.

        What is noted under a shared limit is the same whichever queue is asked for it.
        """
        if limit_name not in self._by_limit:
            self._by_limit[limit_name] = Mending(
                self._client, limit_name, noted=partial(noted, limit_name, label), clock=self._clock
            )
        return self._by_limit[limit_name]


class Mending:
    """The mending of one limit under which nothing but launches counts.

    `noted` tells which launches under way note a slot under it, by their flow runs, whoever carries them.
    """

    def __init__(
        self,
        client: PrefectClient,
        limit_name: str,
        *,
        noted: Callable[[], Awaitable[AbstractSet[UUID]]],
        clock: Clock,
    ) -> None:
        self._client = client
        self._limit_name = limit_name
        self._noted = noted
        self._clock = clock
        self._excess: _Excess | None = None
        self._is_mending = asyncio.Lock()
        # How many slots under it each queue of this agent holds for none of these launches.
        self.unnoted: list[Callable[[AbstractSet[UUID]], int]] = []

    def start_over(self) -> None:
        """Count the time anew: something went wrong, or changes hands, and a slot may be counted for it."""
        self._excess = None

    async def mend(self) -> None:
        """Take off the limit's counter what has long been counted and is nobody's.

        To be called every minute or so. Raises httpx.HTTPError when Prefect cannot be reached. As long as
        something goes wrong nobody can tell: a slot whose answer was lost is counted until its lease ends,
        and so is one that an agent died with in hand.
        """
        if self._is_mending.locked():
            return  # another queue's turn
        async with self._is_mending:
            await self._mend()

    async def _mend(self) -> None:
        excess, now = await self._count_excess(), self._clock.monotonic()
        if excess <= 0 and self._excess is not None:
            # A launch that is just ending notes a slot that it has given back already.
            await self._clock.sleep(LOOK_AGAIN_SECONDS)
            excess = await self._count_excess()
        if excess <= 0:
            self._excess = None
            return
        self._excess = self._excess or _Excess(
            excess,
            # Agents that see the same must not all correct it.
            due=now + EXCESS_SECONDS * random.uniform(1.0, 1.5),  # noqa: S311 - jitter
        )
        self._excess.least = min(self._excess.least, excess)
        if now < self._excess.due:
            return
        await self._clock.sleep(random.uniform(0.0, SPREAD_SECONDS))  # noqa: S311 - jitter
        excess = await self._count_excess()
        least = min(self._excess.least, excess) if self._excess else 0
        self._excess = None
        if least > 0:
            logger.warning("%s counts %d slots that are nobody's; correcting it", self._limit_name, least)
            await take_off(
                self._client,
                [self._limit_name],
                least,
                occupancy_seconds=EXCESS_SECONDS,
                clock=self._clock,
            )

    async def _count_excess(self) -> int:
        """Return how many slots at least the limit counts that no launch has noted, nor this agent holds."""
        try:
            limit = await self._client.read_global_concurrency_limit_by_name(self._limit_name)
            if not limit.active_slots:
                return 0  # nothing for which it would be worth to read every launch
            before = await self._noted()
            if limit.active_slots <= len(before):
                return 0
            # Launches end and begin meanwhile: whichever was there before or after may be what is counted.
            limit = await self._client.read_global_concurrency_limit_by_name(self._limit_name)
            noted = before | await self._noted()
            return limit.active_slots - len(noted) - sum(count(noted) for count in self.unnoted)
        except ObjectNotFound:
            return 0  # somebody has deleted it; whoever takes a slot makes it again
        except httpx.HTTPError:
            self._excess = None
            raise
