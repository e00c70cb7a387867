"""Secrets of a run spec are not kept in Prefect: whoever carries a launch on gets them from W&B."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.flows.launch import launch
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.sandbox.faults.registry import Fault, What
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import POOL, LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import until

SECRET = "nobody-may-read-this"
AUTHORS_KEY = "authors-key-that-nobody-may-read"
UNKNOWN_FIELD = Fault(
    server="wandb", operation="GetRunQueueItemSpec", what=What.ANSWER, status=400, times=None,
    message='Cannot query field "runSpec" on type "RunQueueItem".',
)  # fmt: skip


@pytest.fixture
async def block(queue: LaunchQueue) -> VertexLaunchQueue:
    return await queue.create(max_relaunches=3)


@pytest.fixture
def queue(sandbox: Sandbox, prefect_api: PrefectServer) -> LaunchQueue:
    return LaunchQueue(sandbox)


def push(queue: LaunchQueue, image: str) -> str:
    env = [{"name": "HF_TOKEN", "value": SECRET}]
    pool = {**POOL, "container_spec": {"image_uri": "${image_uri}", "env": env}}
    arguments = {"gcp-vertex": {"spec": {"worker_pool_specs": [pool]}}}
    return queue.push(image, resource_args=arguments, _wandb_api_key=AUTHORS_KEY)


async def popped(block: VertexLaunchQueue) -> QueueItem:
    """The item as a flow run keeps it whose agent died as soon as it had made it."""
    async with block.open_wandb_queue() as wandb:
        item = await wandb.pop(None)
    assert item is not None
    return QueueItem.model_validate(QueueItem.from_popped(item).kept())


async def test_the_next_job_has_what_prefect_does_not_keep(queue: LaunchQueue, block: VertexLaunchQueue):
    push(queue, "sandbox/no-wandb")
    item = await popped(block)
    assert SECRET not in json.dumps(item.kept())
    await launch(queue=queue.name, item=item, return_state=True)
    [job] = await queue.jobs()
    whole = await block.open_vertex_jobs().describe(job.name)
    [pool] = whole.job_spec.worker_pool_specs
    variables = {variable.name: variable.value for variable in pool.container_spec.env}
    assert variables["HF_TOKEN"] == SECRET
    assert variables["WANDB_API_KEY"] == AUTHORS_KEY


async def test_an_item_whose_secrets_are_gone_is_failed_with_that_reason(
    queue: LaunchQueue, block: VertexLaunchQueue
):
    item_id = push(queue, "sandbox/train")
    item = await popped(block)
    await queue.sandbox.faults.add(UNKNOWN_FIELD)
    ended = await launch(queue=queue.name, item=item, return_state=True)
    assert ended.is_failed()
    message = queue.item(item_id).error["message"]
    assert "W&B does not give its run spec again" in message
    assert "is not kept in Prefect" in message
    assert await queue.jobs() == []


@pytest.mark.slow
async def test_a_job_that_runs_is_seen_through_although_its_secrets_are_gone(
    queue: LaunchQueue, block: VertexLaunchQueue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.5)
    item_id = push(queue, "sandbox/hold")
    first = asyncio.create_task(agent(queues=[queue.name], return_state=True))

    async def is_running() -> bool:
        return [job.launch_state for job in await queue.jobs()] == [LaunchState.RUNNING]

    await until(is_running)
    queue.stop_agents()
    await first
    kept: Any = (await queue.launches())[item_id].parameters["item"]
    assert SECRET not in json.dumps(kept)
    assert kept["withheld"] == [
        "resource_args.gcp-vertex.spec.worker_pool_specs[0].container_spec.env[0].value"
    ]
    await queue.sandbox.faults.add(UNKNOWN_FIELD)
    second = asyncio.create_task(agent(queues=[queue.name], drain=True, return_state=True))

    async def is_adopted() -> bool:
        return bool((await queue.launches())[item_id].run_count > 1)

    await until(is_adopted)
    [job] = await queue.jobs()
    queue.sandbox.vertex.cancel(job.name)
    await second
    assert [job.launch_state for job in await queue.jobs()] == [LaunchState.CANCELLED]
    assert "cancelled-elsewhere" in queue.item(item_id).error["message"]
