"""The pace that all agents keep together, on a real Prefect server. No test waits for a slot to decay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from random import Random
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.states import Cancelling

from prefect_vertex_launch.cli.demo.servers import free_port
from prefect_vertex_launch.coordination.submission_rate import SubmissionRate
from prefect_vertex_launch.core.labels import ITEM_LABEL
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import HANG_SECONDS, until

HERE = "us-central1"


class WhenAsleep:
    """A clock on which a pause is over once `act` has been done; without one it never is."""

    def __init__(self) -> None:
        self.sleeps: list[float] = []
        self.act: Callable[[], Awaitable[object]] | None = None
        self.asleep = asyncio.Event()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return sum(self.sleeps)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.asleep.set()
        await (self.act() if self.act is not None else asyncio.Event().wait())


class Scene:
    def __init__(self, client: PrefectClient) -> None:
        self.client = client
        self.project = f"p-{uuid4().hex[:8]}"
        self.clock = WhenAsleep()
        self.agents = [self.agent(), self.agent()]
        self.name = f"vertex-launch-submissions:{self.project}:{HERE}"

    def agent(self, submissions_per_minute: int = 50) -> SubmissionRate:
        return SubmissionRate(
            self.client,
            project=self.project,
            submissions_per_minute=submissions_per_minute,
            clock=self.clock,
            random=Random(1),
        )

    async def limit(self) -> GlobalConcurrencyLimitResponse:
        return await self.client.read_global_concurrency_limit_by_name(self.name)

    async def change(self, **values: object) -> None:
        change = GlobalConcurrencyLimitUpdate.model_validate(values)
        await self.client.update_global_concurrency_limit(self.name, change)

    async def fill(self) -> GlobalConcurrencyLimitResponse:
        """Take what may pass at once, by turns; from then on no slot comes back by itself.

        Returns the limit as it was made.
        """
        for number in range(10):
            assert await self.agents[number % 2].take(HERE)
        assert self.clock.sleeps == []
        made = await self.limit()
        await self.change(active_slots=10, slot_decay_per_second=1e-6)
        return made


@pytest.fixture
async def scene(prefect_api: PrefectServer) -> AsyncIterator[Scene]:
    async with get_client() as client:
        yield Scene(client)


@pytest.mark.slow
async def test_agents_share_what_may_pass_at_once_and_the_next_waits_until_a_slot_is_back(scene):
    limit = await scene.fill()
    assert (limit.limit, limit.slot_decay_per_second) == (10, pytest.approx(40 / 60))
    scene.clock.act = lambda: scene.change(active_slots=9)
    assert await scene.agents[0].take(HERE)
    assert len(scene.clock.sleeps) == 1
    assert 0.7 < scene.clock.sleeps[0] < 1.6
    assert (await scene.limit()).active_slots >= 9


async def test_who_waits_reads_before_it_tries_again(scene):
    await scene.fill()
    tries: list[str] = []

    async def note(request: httpx.Request) -> None:
        tries.extend([request.method] if request.url.path.endswith("/increment") else [])

    scene.client._client.event_hooks["request"].append(note)
    looks = [10, 10, 9]
    scene.clock.act = lambda: scene.change(active_slots=looks.pop(0))
    assert await scene.agents[1].take(HERE)
    assert looks == []
    assert len(tries) == 2, "the one that was refused, and the one that was granted"


async def test_other_regions_have_a_pace_of_their_own(scene):
    await scene.fill()
    assert await scene.agents[0].take("europe-west4")
    assert scene.clock.sleeps == []


async def test_who_is_to_leave_waits_no_longer_and_takes_nothing(scene):
    await scene.fill()
    stop = asyncio.Event()
    waiting = [
        asyncio.create_task(scene.agents[0].take(HERE, unless=(asyncio.Event(), stop))) for _ in range(3)
    ]
    await scene.clock.asleep.wait()
    stop.set()
    assert await asyncio.gather(*waiting) == [False] * 3
    scene.clock.act = lambda: scene.change(active_slots=0)
    assert await scene.agents[0].take(HERE, unless=(asyncio.Event(),))
    assert (await scene.limit()).active_slots == 1


async def test_who_asked_first_goes_first(scene):
    await scene.fill()
    order: list[int] = []

    async def submit(number: int) -> None:
        assert await scene.agents[0].take(HERE)
        order.append(number)

    scene.clock.act = lambda: scene.change(active_slots=9)
    await asyncio.gather(*(submit(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]


async def test_a_limit_that_somebody_deleted_is_made_again(scene):
    await scene.fill()
    await scene.client.delete_global_concurrency_limit_by_name(scene.name)
    assert await scene.agents[0].take(HERE)
    assert (await scene.limit()).active_slots == 1


async def test_a_limit_that_an_operator_has_switched_off_stops_nobody(scene):
    await scene.fill()
    await scene.change(active=False)
    assert await scene.agents[0].take(HERE)
    assert scene.clock.sleeps == []


async def test_a_limit_without_decay_stops_nobody_for_good(scene, caplog):
    await scene.fill()
    await scene.change(slot_decay_per_second=0.0)
    with caplog.at_level(logging.WARNING):
        assert await scene.agents[0].take(HERE)
    assert "does not pace submissions" in caplog.text


async def test_without_prefect_a_process_keeps_to_the_number_alone(scene, caplog):
    async with PrefectClient(f"http://127.0.0.1:{free_port()}/api") as nobody:
        queues = [
            SubmissionRate(nobody, project=scene.project, submissions_per_minute=5, clock=scene.clock)
            for _ in range(2)
        ]
        with caplog.at_level(logging.WARNING):
            storm = [asyncio.create_task(queues[number % 2].take(HERE)) for number in range(8)]
            ends = asyncio.as_completed(storm)
            assert [await next(ends) for _ in range(5)] == [True] * 5
            await scene.clock.asleep.wait()
        assert sum(task.done() for task in storm) == 5
        assert caplog.text.count("does not pace submissions") == 2, "it is not asked again for each"
        for task in storm:
            task.cancel()


@pytest.mark.parametrize("submissions_per_minute", [1, 2, 4, 5, 50, 60, 6000])
async def test_no_window_can_hold_more(scene, submissions_per_minute):
    pace = scene.agent(submissions_per_minute)
    come_back = int(pace.slots_per_second * 60)
    assert 1 <= pace.at_once + come_back <= submissions_per_minute
    assert pace.slots_per_second > 0


@pytest.mark.slow
async def test_a_launch_whose_turn_has_not_come_can_be_ended_and_leaves_no_job(prefect_api):
    async with Sandbox(is_manual=True) as sandbox:
        queue = LaunchQueue(sandbox)
        # One may pass at once, and a slot comes back after two minutes.
        await queue.create(project=f"p-{uuid4().hex[:8]}", submissions_per_minute=1)
        items = {queue.identity.item_key(item_id): item_id for item_id in (queue.push(), queue.push())}

        async def both() -> bool:
            return len(await queue.launches()) == 2 and len(await queue.jobs()) == 1

        async def end_who_waits() -> None:
            await until(both)
            (job,) = await queue.jobs()
            (waits,) = [item_id for key, item_id in items.items() if key != job.labels[ITEM_LABEL]]
            async with get_client() as client:
                await client.set_flow_run_state((await queue.launches())[waits].id, Cancelling())

            async def is_cancelled() -> bool:
                state = (await queue.launches())[waits].state
                return state is not None and state.is_cancelled()

            await until(is_cancelled)
            sandbox.vertex.set_state(job.name, JobState.JOB_STATE_SUCCEEDED)

        async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(drain(queue))
            group.create_task(end_who_waits())
        assert len(await queue.jobs()) == 1


async def drain(queue: LaunchQueue) -> None:
    await agent(queues=[queue.name], drain=True, return_state=True)
