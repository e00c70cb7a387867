"""`vertex-launch adopt`: live jobs that W&B's own agent made are carried on by the next agent."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from prefect import State
from typer.testing import CliRunner, Result

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.cli.adopt import read_foreign_job
from prefect_vertex_launch.cli.main import app
from prefect_vertex_launch.cli.status.status import read_status
from prefect_vertex_launch.coordination.launch_record import item_of, owner_of
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.coordination.prefect_api import open_prefect
from prefect_vertex_launch.core.clock import SystemClock
from prefect_vertex_launch.core.vertex_types import CustomJob, JobState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.eventually import finished, until

RUN_ID = "run1"
SECRET = "s3cret" * 8
DETAIL = "The replica workerpool0-0 exited with a non-zero status of 3. Termination reason: Error."


def environment_of(queue: LaunchQueue, item_id: str, run_id: str = RUN_ID) -> dict[str, str]:
    """What W&B's agent gives a container, in its order."""
    return {
        "WANDB_BASE_URL": queue.sandbox.wandb_url,
        "WANDB_API_KEY": SECRET,
        "WANDB_PROJECT": "runs",
        "WANDB_ENTITY": queue.sandbox.entity,
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": run_id,
        "WANDB_NAME": "left behind",
        "WANDB_LAUNCH_QUEUE_NAME": queue.name,
        "WANDB_LAUNCH_QUEUE_ENTITY": queue.sandbox.entity,
        "WANDB_LAUNCH_TRACE_ID": item_id,
        "WANDB_CONFIG": "{}",
    }


def job_of(environment: dict[str, str], **labels: str) -> CustomJob:
    env = [{"name": name, "value": value} for name, value in environment.items()]
    pool = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": {
            "image_uri": "python",
            "command": ["python", "-c", "import time; time.sleep(600)"],
            "env": env,
        },
    }
    return CustomJob(
        display_name="left behind",
        job_spec={"worker_pool_specs": [pool], "base_output_directory": {"output_uri_prefix": "gs://b/o"}},
        labels={"wandb-run-id": environment["WANDB_RUN_ID"], **labels},
    )


async def create(queue: LaunchQueue, job: CustomJob) -> str:
    jobs = (await VertexLaunchQueue.aload(queue.name)).open_vertex_jobs()
    try:
        return (await jobs.create(job)).name
    finally:
        await jobs.aclose()


def claim(queue: LaunchQueue, item_id: str, run_id: str = RUN_ID) -> None:
    """Take the item as W&B's agent does."""
    sandbox = queue.sandbox.wandb
    assert sandbox.items.pop(sandbox.queue(queue.name), None) is not None
    sandbox.items.acknowledge(item_id, run_id)


async def leave_a_job(queue: LaunchQueue) -> tuple[str, str]:
    """An item that W&B's agent took, and its live job."""
    item_id = queue.push()
    claim(queue, item_id)
    return item_id, await create(queue, job_of(environment_of(queue, item_id)))


async def adopt(queue: LaunchQueue, *options: str) -> Result:
    """Run the command as its own process would, while the sandbox serves from this event loop."""
    return await finished(
        asyncio.to_thread(CliRunner().invoke, app, ["adopt", "--queue", queue.name, *options])
    )


async def drain_while_it_ends(queue: LaunchQueue, name: str, state: JobState) -> State[Any]:
    """Drain the queue; the job ends when the agent has found it and watches it."""
    vertex = queue.sandbox.vertex
    read_before = vertex.calls["GetCustomJob"]
    draining = asyncio.create_task(agent(queues=[queue.name], drain=True, return_state=True))
    # Once by the launch, and once by the watcher: its list has only jobs with the queue's label.
    await until(lambda: vertex.calls["GetCustomJob"] >= read_before + 2 or draining.done())
    vertex.set_state(name, state, code=3, message=DETAIL)
    return await finished(draining)


@pytest.mark.slow
async def test_a_job_that_was_left_is_carried_to_its_end_by_the_next_agent(queue: LaunchQueue) -> None:
    item_id, name = await leave_a_job(queue)

    result = await adopt(queue)

    assert result.exit_code == 0, result.output
    [row] = [line for line in result.stdout.splitlines() if item_id in line]
    assert name.rsplit("/", 1)[-1] in row
    assert "adopted: the next agent" in row
    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.name == "AwaitingAdoption"
    assert launched.name == "left behind"
    assert f"run:{RUN_ID}" in launched.tags
    assert f"project:{queue.sandbox.entity}/runs" in launched.tags
    assert item_of(launched.tags) == item_id
    assert owner_of(launched.tags) is not None
    assert SECRET not in result.output + launched.model_dump_json()
    async with open_prefect() as client:
        [status] = await read_status(client, queue.name)
    [told] = [told for told in status.items if told.item == item_id]
    assert (told.state, told.job) == ("running", name.rsplit("/", 1)[-1])

    ended = await drain_while_it_ends(queue, name, JobState.JOB_STATE_FAILED)

    assert "0 launched, 1 adopted" in (ended.message or "")
    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.is_failed()
    item = queue.item(item_id)
    assert item.state == "FAILED"
    assert "non-zero status of 3" in json.dumps(vars(item), default=str)
    assert len(await queue.jobs()) == 1


@pytest.mark.slow
async def test_a_job_whose_item_the_stopped_agent_failed_is_carried_on_too(queue: LaunchQueue) -> None:
    item_id, name = await leave_a_job(queue)
    queue.sandbox.wandb.items.fail(item_id, "The submitted run was not successfully started", "run", None)

    assert "adopted: the next agent" in (await adopt(queue)).stdout
    await drain_while_it_ends(queue, name, JobState.JOB_STATE_CANCELLED)

    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.name != "Elsewhere"
    assert launched.state.is_final()


async def test_a_job_that_bears_the_label_of_another_item_is_not_touched(queue: LaunchQueue) -> None:
    item_id = queue.push()
    claim(queue, item_id)
    labels = {"launch-item": queue.identity.item_key("another"), "launch-queue": queue.identity.key}
    job = job_of(environment_of(queue, item_id), **labels)
    name = await create(queue, job)
    item = read_foreign_job(CustomJob(job, name=name)).item
    assert item is not None
    async with open_prefect() as client:
        store = LaunchStore(
            client, block_name=queue.name, queue=queue.identity, owner_id=uuid4(), clock=SystemClock()
        )
        assert await store.offer(item.request())

    await finished(agent(queues=[queue.name], drain=True, return_state=True))

    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.is_failed()
    assert f"{name} is the job of another launch" in str(launched.state.message)
    assert [job.is_terminal for job in await queue.jobs()] == [False]


@pytest.mark.slow
async def test_nothing_is_adopted_twice_and_a_dry_run_adopts_nothing(queue: LaunchQueue) -> None:
    item_id, _ = await leave_a_job(queue)

    assert "would be adopted" in (await adopt(queue, "--dry-run")).stdout
    assert not await queue.launches()
    await adopt(queue)
    first = (await queue.launches())[item_id]
    assert "adopted already" in (await adopt(queue)).stdout
    assert "adopted already" in (await adopt(queue, "--dry-run")).stdout
    assert (await queue.launches())[item_id].state_id == first.state_id


async def test_what_is_not_of_this_queue_is_left_alone_with_the_reason(queue: LaunchQueue) -> None:
    claimed = queue.push()
    claim(queue, claimed)
    other_run = await create(queue, job_of(environment_of(queue, claimed, "another")))
    waiting = queue.push()
    again = await create(queue, job_of(environment_of(queue, waiting)))
    gone = await create(queue, job_of(environment_of(queue, "no-such-item")))
    elsewhere = await create(
        queue, job_of(environment_of(queue, claimed) | {"WANDB_LAUNCH_QUEUE_NAME": "other"})
    )
    bare = await create(queue, job_of({"WANDB_RUN_ID": RUN_ID}))
    ours = await create(queue, job_of(environment_of(queue, claimed), **{"launch-item": "x"}))
    ended = await create(queue, job_of(environment_of(queue, claimed)))
    queue.sandbox.vertex.set_state(ended, JobState.JOB_STATE_SUCCEEDED)

    result = await adopt(queue)

    told = {line.split(" | ")[0].strip(): line for line in result.stdout.splitlines()}
    for job, reason in (
        (other_run, f"left alone: its item belongs to run {RUN_ID}"),
        (again, "left alone: its item is PENDING and would be launched once more"),
        (gone, "left alone: its item is no longer in the queue"),
        (elsewhere, f"left alone: it is of the queue {queue.sandbox.entity}/other"),
        (bare, "not recognised, left alone: its environment does not say WANDB_ENTITY, WANDB_PROJECT"),
    ):
        assert reason in told[job.rsplit("/", 1)[-1]]
    assert ours.rsplit("/", 1)[-1] not in told
    assert ended.rsplit("/", 1)[-1] not in told
    assert not await queue.launches()


async def test_without_any_such_job_that_is_said(queue: LaunchQueue) -> None:
    result = await adopt(queue)
    assert result.exit_code == 0
    assert "no live job" in result.stdout


def test_a_label_that_contradicts_the_environment_is_not_believed(sandbox: Sandbox) -> None:
    job = job_of(environment_of(LaunchQueue(sandbox), "item"), **{"wandb-run-id": "other"})
    found = read_foreign_job(job)
    assert found.item is None
    assert "other" in found.problem
    assert SECRET not in repr(found)
