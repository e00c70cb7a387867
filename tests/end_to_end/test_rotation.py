"""What changes in a queue's block while it is served takes effect without a restart, and the log says so."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling
from pydantic import SecretStr

from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import until

NEW_KEY = "rotated_" + "0123456789" * 4


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done every few seconds or minutes is done all the time."""
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.5)
    monkeypatch.setattr("prefect_vertex_launch.launch.block_reload.AFTER_REFUSAL_SECONDS", 0.2)


@pytest.fixture
async def queue(sandbox: Sandbox, prefect_api: PrefectServer) -> LaunchQueue:
    launch_queue = LaunchQueue(sandbox, max_jobs=1)
    await launch_queue.create()
    return launch_queue


def serving(queue: LaunchQueue) -> asyncio.Task[Any]:
    return asyncio.create_task(agent(queues=[queue.name], return_state=True))


async def stopped(queue: LaunchQueue, running: asyncio.Task[Any]) -> Any:
    queue.stop_agents()
    return await running


async def test_a_new_key_is_read_when_the_old_one_is_not_accepted_any_more(
    queue: LaunchQueue, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    running = serving(queue)
    first = queue.push("sandbox/no-wandb")

    async def has_ended() -> bool:
        return queue.item(first).state == "FAILED"

    await until(has_ended)
    queue.sandbox.wandb.api_key = SecretStr(NEW_KEY)

    async def is_refused() -> bool:
        return "does not accept it" in caplog.text

    await until(is_refused)
    queue.sandbox.api_key = NEW_KEY
    await queue.create()
    second = queue.push("sandbox/no-wandb")

    async def is_served() -> bool:
        return queue.item(second).state == "FAILED"

    await until(is_served)
    await stopped(queue, running)
    assert "wandb_credentials" in caplog.text
    assert "(from now on)" in caplog.text
    assert NEW_KEY not in caplog.text


@pytest.mark.slow
async def test_limits_and_locks_that_are_changed_hold_from_then_on(
    queue: LaunchQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("prefect_vertex_launch.launch.block_reload.INTERVAL_SECONDS", 0.3)
    running = serving(queue)
    for _ in range(2):
        queue.push("sandbox/hold")

    async def live() -> int:
        return len([job for job in await queue.jobs() if job.launch_state is LaunchState.RUNNING])

    async def are_running(number: int) -> bool:
        return await live() == number

    await until(lambda: are_running(1))
    queue.max_jobs = 3
    await queue.create(allowed_images=["sandbox/*"], watch_seconds=0.3)
    await until(lambda: are_running(2))
    locked = queue.push("python")

    async def is_refused() -> bool:
        return queue.item(locked).state == "FAILED"

    await until(is_refused)
    assert "not an allowed image" in queue.item(locked).error["message"]
    assert "allowed_images, max_jobs (from now on)" in caplog.text
    assert "watch_seconds (when the agent starts again)" in caplog.text
    async with get_client() as client:
        for launched in (await queue.launches()).values():
            await client.set_flow_run_state(launched.id, Cancelling())
    await stopped(queue, running)


@pytest.mark.slow
async def test_a_limit_that_a_person_has_changed_stays_until_the_block_changes(queue: LaunchQueue):
    async def served() -> int:
        queue.push("sandbox/no-wandb")
        await agent(queues=[queue.name], drain=True, return_state=True)
        async with get_client() as client:
            return (await client.read_global_concurrency_limit_by_name(queue.identity.limit_name)).limit

    assert await served() == 1
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(queue.identity.limit_name, 7)
    assert await served() == 7
    queue.max_jobs = 2
    await queue.create()
    assert await served() == 2


@pytest.mark.slow
async def test_a_block_that_is_made_of_another_queue_is_not_followed_there(
    queue: LaunchQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prefect_vertex_launch.launch.block_reload.INTERVAL_SECONDS", 0.3)
    running = serving(queue)
    first = queue.push("sandbox/no-wandb")

    async def has_ended(item_id: str) -> bool:
        return queue.item(item_id).state == "FAILED"

    await until(lambda: has_ended(first))
    await queue.create(queue=f"{queue.queue}-other")

    async def is_told() -> bool:
        return "is of another queue, project or server now" in caplog.text

    await until(is_told)
    second = queue.push("sandbox/no-wandb")
    await until(lambda: has_ended(second))
    await stopped(queue, running)
