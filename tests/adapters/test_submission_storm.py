"""How many jobs several agents submit in a minute, in virtual time, with Prefect's limit and without it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from math import floor
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from prefect_vertex_launch.coordination.submission_rate import SubmissionRate
from tests.adapters.modelled_vertex import LoopClock, in_virtual_time, most_in_a_window

AGENTS = 4
SUBMISSIONS = 60
GOOGLE_ALLOWS = 60
_REQUEST = httpx.Request("POST", "http://prefect.test")


@dataclass
class ModelledLimit:
    """A global concurrency limit whose slots decay, as Prefect 3.8 keeps it; `is_away` if nobody answers.

    Source: prefect/server/models/concurrency_limits_v2.py. It is one limit, by whatever name it is asked
    for: agents that are processes of their own share nothing but this.
    """

    limit: int = 0
    slots_per_second: float = 0.0
    active_slots: int = 0
    updated: float = 0.0
    is_away: bool = False
    random: Random = field(default_factory=lambda: Random(1))

    async def increment_concurrency_slots(self, names: list[str], slots: int, mode: str) -> httpx.Response:
        await self._answer()
        now, active = asyncio.get_running_loop().time(), self._after_decay()
        if active + slots > self.limit:
            self.updated = now
            refusal = httpx.Response(423, request=_REQUEST)
            raise httpx.HTTPStatusError("no slot", request=_REQUEST, response=refusal)
        self.active_slots, self.updated = active + slots, now
        return httpx.Response(200, json=[{"name": name} for name in names], request=_REQUEST)

    async def read_global_concurrency_limit_by_name(self, name: str) -> Any:
        await self._answer()
        return SimpleNamespace(name=name, limit=self.limit, active_slots=self._after_decay())

    async def upsert_global_concurrency_limit_by_name(
        self, name: str, limit: int, slot_decay_per_second: float
    ) -> None:
        await self._answer()
        self.limit, self.slots_per_second = limit, slot_decay_per_second

    def _after_decay(self) -> int:
        elapsed = asyncio.get_running_loop().time() - self.updated
        return max(0, self.active_slots - floor(self.slots_per_second * elapsed))

    async def _answer(self) -> None:
        await asyncio.sleep(self.random.uniform(0.01, 0.3))
        if self.is_away:
            raise httpx.ConnectError("nobody is there", request=_REQUEST)


def submitted(limit: ModelledLimit, *, away_from: float | None = None) -> list[float]:
    """Return when the jobs of all agents, which begin a storm at the same moment, were submitted."""

    async def main() -> list[float]:
        loop, times = asyncio.get_running_loop(), list[float]()

        async def submit(pace: SubmissionRate) -> None:
            assert await pace.take("us-central1")
            times.append(loop.time())

        if away_from is not None:
            loop.call_at(away_from, lambda: setattr(limit, "is_away", True))
        async with asyncio.TaskGroup() as group:
            for number in range(AGENTS):
                # A project of its own stands for a process of its own: nobody shares its budget.
                pace = SubmissionRate(
                    cast("Any", limit),
                    project=f"p{number}",
                    submissions_per_minute=50,
                    clock=LoopClock(),
                    random=Random(number),
                )
                pace.agents = AGENTS
                for _ in range(SUBMISSIONS):
                    group.create_task(submit(pace))
        return times

    return in_virtual_time(main())


def test_agents_that_begin_a_storm_together_keep_to_the_pace_and_use_more_than_half_of_it():
    times = submitted(ModelledLimit())
    assert len(times) == AGENTS * SUBMISSIONS
    assert most_in_a_window(times) <= 50
    assert times[-1] < 2 * 60 * len(times) / 50


@pytest.mark.parametrize("away_from", [0.0, 10.0, 61.0])
def test_agents_that_cannot_ask_prefect_keep_to_their_parts(away_from):
    times = submitted(ModelledLimit(), away_from=away_from)
    assert len(times) == AGENTS * SUBMISSIONS
    assert most_in_a_window(times) <= GOOGLE_ALLOWS
