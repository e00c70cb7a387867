"""Whether an agent is needed: only another one that began earlier and is at work makes it superfluous."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Running

from prefect_vertex_launch.agent.standby import find_predecessor
from prefect_vertex_launch.coordination.heartbeat import HEARTBEAT_LABEL
from prefect_vertex_launch.flows.agent import agent
from tests.end_to_end.prefect_server import PrefectServer


class Moments:
    """A clock on which every pause is over once `act` has been done."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.act: Callable[[], Awaitable[None]] | None = None

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.act is not None:
            await self.act()


class Scene:
    def __init__(self, client: PrefectClient) -> None:
        self.client = client
        self.clock = Moments()
        self.queue = f"q-{uuid4().hex[:8]}"
        self.is_over = False
        self.started: list[UUID] = []

    async def start(self, *queues: str) -> FlowRun:
        run = await self.client.create_flow_run(
            agent, parameters={"queues": [*queues] or [self.queue]}, state=Running()
        )
        self.started.append(run.id)
        await self.beat(run, 1)
        return run

    async def beat(self, run: FlowRun, count: int) -> None:
        await self.client.update_flow_run_labels(run.id, {HEARTBEAT_LABEL: count})

    async def found_by(self, run: FlowRun) -> UUID | None:
        found = await find_predecessor(
            self.client, run.id, [self.queue],
            is_over=lambda: self.is_over, clock=self.clock,
        )  # fmt: skip
        return found and found.id


@pytest.fixture
async def scene(prefect_api: PrefectServer) -> AsyncIterator[Scene]:
    async with get_client() as client:
        made = Scene(client)
        yield made
        for flow_run_id in made.started:
            await client.set_flow_run_state(flow_run_id, Completed(), force=True)


async def test_an_agent_that_is_at_work_makes_a_later_one_superfluous_and_not_the_other_way(scene: Scene):
    first, second = await scene.start("another", scene.queue), await scene.start()
    scene.clock.act = lambda: scene.beat(first, 2)
    assert await scene.found_by(second) == first.id
    scene.clock.act = lambda: scene.beat(second, 2)
    assert await scene.found_by(first) is None


async def test_an_agent_that_died_without_a_word_is_followed_after_a_minute_and_a_half(scene: Scene):
    await scene.start()
    second = await scene.start()
    assert await scene.found_by(second) is None
    assert 90 <= scene.clock.seconds <= 100


async def test_agents_of_other_queues_are_no_reason_to_wait(scene: Scene):
    await scene.start("another")
    second = await scene.start()
    assert await scene.found_by(second) is None
    assert scene.clock.seconds == 0


async def test_who_is_to_end_waits_no_longer(scene: Scene):
    await scene.start()
    second = await scene.start()

    async def end() -> None:
        scene.is_over = True

    scene.clock.act = end
    assert await scene.found_by(second) is None
    assert scene.clock.seconds < 10
