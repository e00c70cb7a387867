"""What befalls single launches and queues at bad moments ends neither a job's watch nor anybody else's."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Cancelling, Crashed

from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.flows import launch
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.faults.registry import Fault, What
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import until

BAD = {"resource_args": {"gcp-vertex": {"spec": {"worker_pool_spec": 1}}}}
FULL = "The following quotas are exceeded: CustomModelTrainingNvidiaA100GPUsPerProjectPerRegion"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done every half minute is done all the time."""
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.5)
    monkeypatch.setattr("prefect_vertex_launch.agent.queue_worker.ADOPTION_SECONDS", 0.3)
    monkeypatch.setattr("prefect_vertex_launch.launch.stop_requests.STOP_POLL_SECONDS", 0.3)


@pytest.fixture
async def queue(sandbox: Sandbox, prefect_api: PrefectServer) -> LaunchQueue:
    launch_queue = LaunchQueue(sandbox, max_jobs=1)
    await launch_queue.create()
    return launch_queue


def serving(*queues: LaunchQueue, **options: Any) -> asyncio.Task[Any]:
    names = [queue.name for queue in queues]
    return asyncio.create_task(agent(queues=names, return_state=True, **options))


async def end(queue: LaunchQueue, agents: asyncio.Task[Any]) -> Any:
    """Stop the agents at W&B, and return how this one ended."""
    queue.stop_agents()
    return await agents


async def until_running(queue: LaunchQueue) -> None:
    async def is_running() -> bool:
        return LaunchState.RUNNING in [job.launch_state for job in await queue.jobs()]

    await until(is_running)


@pytest.mark.slow
async def test_a_cancel_outlives_the_crash_that_the_end_of_the_process_makes_of_it(queue: LaunchQueue):
    item_id = queue.push("sandbox/hold")
    first = serving(queue)
    await until_running(queue)
    await end(queue, first)
    launched = (await queue.launches())[item_id]
    async with get_client() as client:
        await client.set_flow_run_state(launched.id, Cancelling())
        await client.set_flow_run_state(launched.id, Crashed(message="as Prefect's engine does"), force=True)
    await serving(queue, drain=True)
    assert [job.launch_state for job in await queue.jobs()] == [LaunchState.CANCELLED]
    assert "Cancelled in Prefect by a user" in queue.item(item_id).error["message"]


async def test_a_launch_that_is_ended_by_hand_in_prefect_ends_its_job(queue: LaunchQueue):
    item_id = queue.push("sandbox/hold")
    running = serving(queue, drain=True)
    await until_running(queue)
    async with get_client() as client:
        await client.set_flow_run_state(
            (await queue.launches())[item_id].id, Cancelled(message="by hand"), force=True
        )
    await running
    assert [job.launch_state for job in await queue.jobs()] == [LaunchState.CANCELLED]
    assert queue.item(item_id).state == "FAILED"


@pytest.mark.slow
async def test_a_job_whose_flow_run_was_deleted_is_seen_through(queue: LaunchQueue):
    item_id = queue.push("sandbox/hold")
    running = serving(queue, drain=True)
    await until_running(queue)
    async with get_client() as client:
        await client.delete_flow_run((await queue.launches())[item_id].id)
    before = queue.sandbox.vertex.calls["ListCustomJobs"]

    async def has_looked() -> bool:
        return queue.sandbox.vertex.calls["ListCustomJobs"] >= before + 10

    await until(has_looked)
    [job] = await queue.jobs()
    queue.sandbox.vertex.cancel(job.name)
    await running
    assert queue.item(item_id).state == "FAILED"


@pytest.mark.slow
async def test_a_job_that_nobody_saw_created_is_found_before_its_item_is_refused(
    queue: LaunchQueue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prefect_vertex_launch.launch.find_jobs.LOOK_AGAIN_SECONDS", (0.1, 0.1))
    monkeypatch.setattr("prefect_vertex_launch.launch.find_jobs.LAST_LOOKS_SECONDS", (0.1,) * 8)
    create = {"server": "vertex", "operation": "CreateCustomJob"}
    faults = queue.sandbox.faults
    await faults.add(Fault(**create, what=What.CUT_AFTER))
    await faults.add(Fault(**create, what=What.HIDDEN, lists=8))
    await faults.add(Fault(**create, what=What.ANSWER, status=403, times=None))
    item_id = queue.push("sandbox/hold")
    running = serving(queue, drain=True)
    await until_running(queue)

    async def is_followed() -> bool:
        launched = (await queue.launches())[item_id]
        async with get_client() as client:
            return bool(await client.read_flow_run(launched.id)) and launched.state.is_running()

    await until(is_followed)
    [job] = await queue.jobs()
    queue.sandbox.vertex.cancel(job.name)
    await running
    assert "cancelled-elsewhere" in queue.item(item_id).error["message"]


async def test_a_refused_item_that_wandb_does_not_take_back_keeps_no_slot(queue: LaunchQueue):
    denied = await queue.sandbox.faults.add(
        Fault(server="wandb", operation="failRunQueueItem", what=What.ANSWER, status=403, times=None)
    )
    bad, good = queue.push("python", **BAD), queue.push("sandbox/no-wandb")
    running = serving(queue, drain=True)

    async def has_started() -> Any:
        return queue.item(good).associated_run_id

    await until(has_started)
    await queue.sandbox.faults.remove(denied)
    await running
    assert {queue.item(bad).state, queue.item(good).state} == {"FAILED"}


@pytest.mark.slow
async def test_the_queueing_timeout_bounds_the_wait_for_a_quota(sandbox: Sandbox, prefect_api: PrefectServer):
    queue = LaunchQueue(sandbox)
    await queue.create(queueing_timeout_seconds=1.0)
    await sandbox.faults.add(
        Fault(
            server="vertex", operation="CreateCustomJob", what=What.ANSWER, status=429, times=None,
            message=FULL,
        )
    )  # fmt: skip
    item_id = queue.push("sandbox/train")
    await serving(queue, drain=True)
    assert "queueing timeout" in queue.item(item_id).error["message"]
    assert await queue.jobs() == []


@pytest.mark.slow
async def test_a_shared_limit_that_was_deleted_ends_no_agent(
    sandbox: Sandbox, prefect_api: PrefectServer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    shared = f"vertex-launch-shared:{uuid4().hex[:6]}"
    one, other = LaunchQueue(sandbox, max_jobs=1), LaunchQueue(sandbox, max_jobs=1)
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(shared, 10)
        for queue in (one, other):
            await queue.create(shared_limits=[shared])
        for _ in range(2):
            one.push("sandbox/hold")
        running = serving(one, other)
        await until_running(one)
        await client.delete_global_concurrency_limit_by_name(shared)

        async def is_noticed() -> bool:
            return "Prefect could not be asked for shared limits" in caplog.text

        await until(is_noticed)
        await client.upsert_global_concurrency_limit_by_name(shared, 10)
        item_id = other.push("sandbox/no-wandb")

        async def has_started() -> Any:
            return other.item(item_id).associated_run_id

        await until(has_started)
    await end(one, running)


async def test_two_blocks_of_one_queue_are_not_served_by_one_agent(queue: LaunchQueue):
    item_id = queue.push("sandbox/no-wandb")
    twin = LaunchQueue(queue.sandbox)
    await twin.create(queue=queue.name)
    ended = await serving(queue, twin, drain=True)
    assert ended.is_failed()
    assert (
        f"it is of the queue {queue.sandbox.entity}/{queue.name}, as block {queue.name} is" in ended.message
    )
    assert "1 launched, 0 adopted" in ended.message
    assert queue.item(item_id).state == "FAILED"


async def test_an_agent_that_may_not_register_serves_nothing_and_says_why(queue: LaunchQueue):
    item_id = queue.push("sandbox/no-wandb")
    await queue.sandbox.faults.add(
        Fault(server="wandb", operation="createLaunchAgent", what=What.ANSWER, status=403, times=None)
    )
    ended = await serving(queue)
    assert ended.is_failed()
    assert "403" in ended.message
    assert queue.item(item_id).state == "PENDING"


@pytest.mark.slow
async def test_an_agent_that_starts_while_wandb_is_away_carries_on_what_is_left_and_registers_later(
    queue: LaunchQueue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prefect_vertex_launch.launch.outage.FIRST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr("prefect_vertex_launch.launch.outage.MAX_PAUSE_SECONDS", 1.0)
    for step in (launch.claim, launch.render, launch.submit, launch.wait, launch.report):
        monkeypatch.setattr(step, "retry_delay_seconds", [0.1] * 4)
    item_id = queue.push("sandbox/hold")
    first = serving(queue)
    await until_running(queue)
    await end(queue, first)
    faults = queue.sandbox.faults
    await faults.add(Fault(server="wandb", what=What.DOWN))
    second = serving(queue)

    async def is_carried_on() -> bool:
        launched = (await queue.launches())[item_id]
        return launched.state is not None and launched.state.name == "WaitingForService"

    await until(is_carried_on)
    async with get_client() as client:
        await client.set_flow_run_state((await queue.launches())[item_id].id, Cancelling())

    async def is_cancelled() -> bool:
        return [job.launch_state for job in await queue.jobs()] == [LaunchState.CANCELLED]

    await until(is_cancelled)
    await faults.clear()

    async def is_registered() -> bool:
        return len(queue.sandbox.wandb.agents.all()) == 2

    await until(is_registered)
    later = queue.push("sandbox/no-wandb")

    async def is_told() -> bool:
        return {queue.item(item_id).state, queue.item(later).state} == {"FAILED"}

    await until(is_told)
    await end(queue, second)
