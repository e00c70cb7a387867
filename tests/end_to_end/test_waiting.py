"""Waiting is not failing: for quota, for machines, for a restart; and what bounds it if a queue says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from prefect_vertex_launch.coordination.launch_record import lease_of, waited_labels, waited_of
from prefect_vertex_launch.core.clock import SystemClock
from prefect_vertex_launch.core.labels import ITEM_LABEL
from prefect_vertex_launch.core.states import JobRecord, LaunchState
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.faults.registry import Fault, What
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import POOL, LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import HANG_SECONDS, until

FULL = Fault(
    server="vertex", operation="CreateCustomJob", what=What.ANSWER, code="RESOURCE_EXHAUSTED", times=3
)
BORN = Fault(
    server="vertex", operation="CreateCustomJob", what=What.STATE, state="JOB_STATE_RUNNING", times=None
)
TO_EUROPE = {"location": "europe-west4"}


def with_fallbacks(*fallbacks: Any) -> dict[str, Any]:
    spec = {"worker_pool_specs": [POOL], "staging_bucket": "gs://bucket"}
    return {"resource_args": {"gcp-vertex": {"spec": spec, "launch": {"fallbacks": list(fallbacks)}}}}


async def drained(queue: LaunchQueue, happens: Callable[[], Awaitable[None]]) -> None:
    """Let an agent drain the queue while something happens to its jobs."""

    async def drain() -> None:
        await agent(queues=[queue.name], drain=True, return_state=True)

    async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(drain())
        group.create_task(happens())


async def jobs_of(queue: LaunchQueue, item_id: str) -> list[JobRecord]:
    found = await queue.jobs_of(item_id)
    return sorted(found, key=lambda job: job.attempt)


async def job_of(queue: LaunchQueue, item_id: str, *, attempt: int = 1) -> JobRecord:
    async def found() -> JobRecord | None:
        return next((job for job in await jobs_of(queue, item_id) if job.attempt == attempt), None)

    return await until(found)


async def is_shown(queue: LaunchQueue, item_id: str, name: str) -> None:
    """Wait until the flow run of an item has a state of this name."""

    async def found() -> bool:
        launched = (await queue.launches()).get(item_id)
        return launched is not None and launched.state is not None and launched.state.name == name

    await until(found)


async def has_shown(queue: LaunchQueue, item_id: str) -> list[str | None]:
    """The names of all states that the flow run of an item has had."""
    async with get_client() as client:
        states = await client.read_flow_run_states((await queue.launches())[item_id].id)
    return [state.name for state in states]


def warnings_of(queue: LaunchQueue, item_id: str) -> str:
    notices = queue.item(item_id).notices
    return " ".join(notice["message"] for notice in notices if notice["kind"] == "warning")


@pytest.fixture
async def queue(prefect_api: PrefectServer) -> Any:
    """A queue whose jobs do nothing until the test moves them."""
    async with Sandbox(is_manual=True) as sandbox:
        yield LaunchQueue(sandbox)


@pytest.mark.slow
async def test_jobs_that_wait_too_long_are_tried_elsewhere_or_given_up(queue: LaunchQueue) -> None:
    # Time enough between the two for both notices, on a slow machine as well.
    await queue.create(queueing_timeout_seconds=8.0, long_wait_seconds=0.2, start_timeout_seconds=0.1)
    elsewhere = queue.push(**with_fallbacks(TO_EUROPE))
    given_up = queue.push()
    never_starts = queue.push(name="never starts")
    # A job has its state from its birth on: nobody has to be in time to put it there.
    for about, state in (("never starts", "JOB_STATE_RUNNING"), ("europe-west4", "JOB_STATE_SUCCEEDED")):
        await queue.sandbox.faults.add(BORN.model_copy(update={"about": about, "state": state}))

    await agent(queues=[queue.name], drain=True, return_state=True)

    assert "WaitingForCapacity" in await has_shown(queue, given_up)
    [first, second] = await jobs_of(queue, elsewhere)
    assert first.launch_state is LaunchState.CANCELLED
    assert "/europe-west4/" in second.name
    assert "fallback 1" in warnings_of(queue, elsewhere)
    assert "queueing-timeout" in queue.item(given_up).error["message"]
    assert "waits for quota or machines since" in warnings_of(queue, given_up)
    assert "start-timeout" in queue.item(never_starts).error["message"]
    launches = await queue.launches()
    for item_id in (given_up, never_starts):
        [job] = await jobs_of(queue, item_id)
        assert job.launch_state is LaunchState.CANCELLED
        state = launches[item_id].state
        assert state is not None
        assert (state.name, state.is_failed()) == ("TimedOut", True)


@pytest.mark.parametrize("hours", [2, pytest.param(-2, marks=pytest.mark.slow)])
async def test_a_clock_that_is_hours_off_ends_no_job(
    queue: LaunchQueue, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_off = timedelta(hours=hours)
    monkeypatch.setattr(SystemClock, "now", lambda _clock: datetime.now(UTC) + is_off)
    await queue.create(
        queueing_timeout_seconds=3600.0, long_wait_seconds=1800.0, start_timeout_seconds=3600.0
    )
    item_id = queue.push()

    async def happens() -> None:
        name = (await job_of(queue, item_id)).name
        for state in (JobState.JOB_STATE_PENDING, JobState.JOB_STATE_RUNNING):
            queue.sandbox.vertex.set_state(name, state)
            await is_seen(queue)
            await is_seen(queue)
        queue.sandbox.vertex.set_state(name, JobState.JOB_STATE_SUCCEEDED)

    await drained(queue, happens)

    [job] = await jobs_of(queue, item_id)
    assert job.launch_state is LaunchState.SUCCEEDED
    assert warnings_of(queue, item_id) == ""


@pytest.mark.slow
async def test_what_a_job_has_waited_goes_on_counting_with_the_next_agent(
    queue: LaunchQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.2)
    await queue.create()
    item_id = queue.push()
    first = asyncio.create_task(agent(queues=[queue.name], return_state=True))
    await job_of(queue, item_id)
    await is_seen(queue)
    queue.stop_agents()
    await first
    left = (await queue.launches())[item_id]
    waited_seconds, has_job = waited_of(left.labels)
    assert waited_seconds > 0
    assert has_job
    # As if that agent had waited for an hour: the next one has nothing left to wait.
    async with get_client() as client:
        await client.update_flow_run_labels(left.id, {**waited_labels(3600.0, has_job=True)})
    await queue.create(queueing_timeout_seconds=3600.0)
    await agent(queues=[queue.name], drain=True, return_state=True)
    [job] = await jobs_of(queue, item_id)
    assert job.launch_state is LaunchState.CANCELLED
    assert "longer than the queueing timeout" in queue.item(item_id).error["message"]


async def test_by_default_a_job_waits_for_machines_as_long_as_it_takes_and_a_restart_is_told(
    queue: LaunchQueue,
) -> None:
    block = await queue.create()
    item_id = queue.push()
    vertex = queue.sandbox.vertex

    async def happens() -> None:
        name = (await job_of(queue, item_id)).name
        for state in (JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_PENDING, JobState.JOB_STATE_RUNNING):
            vertex.set_state(name, state)
            await is_seen(queue)
        vertex.set_state(name, JobState.JOB_STATE_FAILED, 3, "it failed")

    await drained(queue, happens)

    assert (block.queueing_timeout_seconds, block.start_timeout_seconds) == (None, None)
    assert "again since" in warnings_of(queue, item_id)
    assert "it failed" in queue.item(item_id).error["message"]


async def is_seen(queue: LaunchQueue) -> None:
    """Wait until the watcher has listed the jobs twice more: what is now has been seen."""
    before = queue.sandbox.vertex.calls["ListCustomJobs"]

    async def found() -> bool:
        # The agent lists one region; nothing else here lists while this waits.
        return queue.sandbox.vertex.calls["ListCustomJobs"] >= before + 2

    await until(found)


async def test_quota_at_submission_is_waited_for_in_sight(queue: LaunchQueue) -> None:
    await queue.create(long_wait_seconds=0.1)
    await queue.sandbox.faults.add(FULL)
    item_id = queue.push()

    async def happens() -> None:
        name = (await job_of(queue, item_id)).name
        queue.sandbox.vertex.set_state(name, JobState.JOB_STATE_FAILED, 3, "it failed")

    await drained(queue, happens)

    assert "WaitingForQuota" in await has_shown(queue, item_id)
    assert "custom_model_training_nvidia_t4_gpus" in warnings_of(queue, item_id)
    assert "it failed" in queue.item(item_id).error["message"]
    assert len(await jobs_of(queue, item_id)) == 1


async def test_a_launch_that_is_cancelled_while_it_waits_for_quota_ends_without_a_job(
    queue: LaunchQueue,
) -> None:
    await queue.create()
    await queue.sandbox.faults.add(FULL.model_copy(update={"times": None}))
    item_id = queue.push()

    async def happens() -> None:
        await is_shown(queue, item_id, "WaitingForQuota")
        async with get_client() as client:
            await client.set_flow_run_state((await queue.launches())[item_id].id, Cancelling())

    await drained(queue, happens)

    state = (await queue.launches())[item_id].state
    assert state is not None
    assert state.is_cancelled()
    assert "Cancelled in Prefect by a user" in (state.message or "")
    assert "Cancelled in Prefect by a user" in queue.item(item_id).error["message"]
    assert await jobs_of(queue, item_id) == []


@pytest.mark.slow
async def test_launches_that_have_lost_their_slots_wait_for_room_and_not_for_each_other(
    queue: LaunchQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.5)
    monkeypatch.setattr("prefect_vertex_launch.launch.find_jobs.LOOK_AGAIN_SECONDS", (0.1,))
    monkeypatch.setattr("prefect_vertex_launch.launch.find_jobs.LAST_LOOKS_SECONDS", (0.1,))
    await queue.create(max_jobs=2)
    vertex = queue.sandbox.vertex
    full = await queue.sandbox.faults.add(FULL.model_copy(update={"times": None}))
    item_ids = [queue.push(), queue.push()]
    serving = asyncio.create_task(agent(queues=[queue.name], return_state=True))
    for item_id in item_ids:
        await is_shown(queue, item_id, "WaitingForQuota")
    [registered] = queue.sandbox.wandb.agents.all()
    queue.sandbox.wandb.stop_polling(registered.id)
    await serving
    async with get_client() as client:
        for launched in (await queue.launches()).values():
            lease_id = lease_of(launched.labels)
            assert lease_id is not None
            await client.release_concurrency_slots_with_lease(lease_id=lease_id)
    await queue.create(max_jobs=1)
    await queue.sandbox.faults.remove(full)

    async def happens() -> None:
        async def any_job() -> JobRecord | None:
            return next(iter(await queue.jobs()), None)

        first = await until(any_job)
        [waiting] = [
            item_id for item_id in item_ids if first.labels[ITEM_LABEL] != queue.identity.item_key(item_id)
        ]
        await is_shown(queue, waiting, "WaitingForSlot")
        assert await jobs_of(queue, waiting) == []
        vertex.set_state(first.name, JobState.JOB_STATE_FAILED, 3, "it failed")
        vertex.set_state((await job_of(queue, waiting)).name, JobState.JOB_STATE_FAILED, 3, "it failed")

    await drained(queue, happens)

    assert [len(await jobs_of(queue, item_id)) for item_id in item_ids] == [1, 1]


@pytest.mark.slow
async def test_a_job_is_cancelled_once_however_long_it_takes_to_end(queue: LaunchQueue) -> None:
    await queue.create()
    item_id = queue.push()
    vertex = queue.sandbox.vertex

    async def happens() -> None:
        name = (await job_of(queue, item_id)).name
        vertex.set_state(name, JobState.JOB_STATE_RUNNING)
        async with get_client() as client:
            await client.set_flow_run_state((await queue.launches())[item_id].id, Cancelling())

        async def is_cancelling() -> bool:
            return vertex.calls["CancelCustomJob"] > 0

        await until(is_cancelling)
        vertex.set_state(name, JobState.JOB_STATE_CANCELLING)
        await is_seen(queue)
        await is_seen(queue)
        vertex.set_state(name, JobState.JOB_STATE_CANCELLED)

    await drained(queue, happens)

    assert vertex.calls["CancelCustomJob"] == 1
    state = (await queue.launches())[item_id].state
    assert state is not None
    assert state.is_cancelled()


async def test_where_machines_are_over_quota_the_next_region_is_taken_at_once(queue: LaunchQueue) -> None:
    await queue.create()
    await queue.sandbox.faults.add(FULL.model_copy(update={"times": None, "about": "us-central1"}))
    item_id = queue.push(**with_fallbacks(TO_EUROPE))

    async def happens() -> None:
        name = (await job_of(queue, item_id)).name
        queue.sandbox.vertex.set_state(name, JobState.JOB_STATE_FAILED, 3, "it failed")

    await drained(queue, happens)

    [job] = await jobs_of(queue, item_id)
    assert "/europe-west4/" in job.name
