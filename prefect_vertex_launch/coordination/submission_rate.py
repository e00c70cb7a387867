"""The pace of submissions, kept by all agents together: a global concurrency limit whose slots decay.

Google allows about 60 submissions a minute in a project and region, whichever machine they come from.
Each process keeps within a budget of its own (`vertex.call_budget`), which knows nothing of the others;
this limit counts them all. While Prefect is away each agent takes its part of the number.
The wait is here and not in the call that creates the job, because whoever has waited has to make sure
first that the launch is still its own.

Prefect keeps such a limit as a bucket: a submission takes a slot, and slots come back one by one, so
many a second. In any 60 seconds no more can pass than the bucket holds and than come back in that time.
A try that is refused makes the slot that is about to come back start anew (prefect 3.8,
server/models/concurrency_limits_v2.py: `updated` moves, `active_slots` does not), so many who try
often would stop it for good: who was refused tries again only after it has read that there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable
from random import Random

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock, unless_any
from prefect_vertex_launch.vertex.call_budget import Call, CallBudget, shared_budget

logger = clean_log(__name__)

_LOCKED = 423
# Prefect's client tries for about a minute to reach a server that is away: not for every submission.
ASK_AGAIN_SECONDS = 60.0


class SubmissionRate:
    """Lets at most `submissions_per_minute` pass in any 60 seconds, in a region of a project.

    A fifth of them may pass at once. The limit is named `vertex-launch-submissions:<project>:<location>`;
    it is made, or set to this number, when it is first used.
    """

    def __init__(
        self,
        client: PrefectClient,
        *,
        project: str,
        submissions_per_minute: int,
        clock: Clock,
        random: Random | None = None,
    ) -> None:
        self._client = client
        self.project = project
        self._submissions_per_minute = submissions_per_minute
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - jitter
        self.at_once = max(1, submissions_per_minute // 5)
        # Half a slot a minute is the least: one that never comes back would be no pace.
        self.slots_per_second = max(0.5, submissions_per_minute - self.at_once) / 60
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._known: set[str] = set()
        self._away_until = clock.monotonic()
        # How many agents submit to the project, as far as is known.
        self.agents = 1

    def limit_name(self, location: str) -> str:
        """Return the name of a region's limit in Prefect."""
        return f"vertex-launch-submissions:{self.project}:{location}"

    async def take(self, location: str, unless: Iterable[asyncio.Event] = ()) -> bool:
        """Wait for the turn of one submission, no longer than until one of `unless` is set.

        Returns whether its turn has come. Who asked first goes first. While Prefect cannot be asked as many
        pass as are this agent's part.
        """
        return await unless_any(self._turn(location), *unless) is not None

    async def _turn(self, location: str) -> float:
        name = self.limit_name(location)
        async with self._lines[name]:
            if self._clock.monotonic() >= self._away_until:
                await self._turn_at_prefect(name)
            is_away = self._clock.monotonic() < self._away_until
            budget = self._budget_of_this_process(location)
            budget.narrow(1 / self.agents if is_away else 1.0)
            return await budget.take(Call.CREATE)

    async def _turn_at_prefect(self, name: str) -> None:
        try:
            while not await self._is_granted(name):
                await self._until_room(name)
        except (httpx.HTTPError, ObjectNotFound) as error:
            logger.warning("Prefect's limit %s does not pace submissions for now: %s", name, error)
            self._away_until = self._clock.monotonic() + ASK_AGAIN_SECONDS

    def _budget_of_this_process(self, location: str) -> CallBudget:
        """Return the window that holds while Prefect is away; it has seen what passed before."""
        return shared_budget(
            "submission pace",
            self.project,
            location,
            clock=self._clock,
            calls_per_minute=self._submissions_per_minute,
            submissions_per_minute=self._submissions_per_minute,
        )

    async def _is_granted(self, name: str) -> bool:
        if name not in self._known:
            await self._ensure(name)
        try:
            # Dying after this line costs a slot, which comes back by itself.
            response = await self._client.increment_concurrency_slots([name], 1, "rate_limit")
        except httpx.HTTPStatusError as error:
            if error.response.status_code == _LOCKED:
                return False
            raise
        if not response.json():
            # Someone deleted the limit; without it Prefect grants everything.
            self._known.discard(name)
            return False
        return True

    async def _until_room(self, name: str) -> None:
        while name in self._known:
            await self._clock.sleep(self._random.uniform(0.5, 1.0) / self.slots_per_second)
            limit = await self._client.read_global_concurrency_limit_by_name(name)
            if limit.active_slots < limit.limit:
                return

    async def _ensure(self, name: str) -> None:
        with contextlib.suppress(ObjectAlreadyExists):  # another agent has just made it
            await self._client.upsert_global_concurrency_limit_by_name(
                name, self.at_once, slot_decay_per_second=self.slots_per_second
            )
        self._known.add(name)
