"""Sweeps on a Vertex queue: trials as long as their sweep goes on, schedulers as jobs of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import finished, until


def scheduler(sweep_id: str) -> dict[str, Any]:
    """A scheduler's item as `wandb launch-sweep` leaves it in the queue."""
    return {
        "uri": "placeholder-uri-scheduler",
        "docker": {},
        "resource": "local-process",
        "run_id": sweep_id,
        "name": f"Scheduler.{sweep_id}",
        "overrides": {
            "entry_point": ["wandb", "scheduler", sweep_id],
            "args": ["--queue", "'q'", "--project", "runs", "--image_uri", "python"],
        },
    }


@pytest.mark.slow
async def test_a_trial_is_launched_while_its_sweep_goes_on_and_refused_afterwards(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    queue = LaunchQueue(sandbox)
    await queue.create()
    sandbox.wandb.put_sweep("runs", "going", "RUNNING")
    sandbox.wandb.put_sweep("runs", "over", "CANCELED")
    trial = queue.push("sandbox/train", sweep_id="going")
    late = queue.push("sandbox/train", sweep_id="over")
    stray = queue.push("sandbox/train", sweep_id="nowhere")

    await agent(queues=[queue.name], drain=True, return_state=True)

    assert queue.item(trial).state == "CLAIMED"
    run = sandbox.wandb.run("runs", queue.item(trial).associated_run_id)
    assert run is not None
    assert (run.state, run.sweep) == ("finished", "going")
    for item_id, sweep in ((late, "over"), (stray, "nowhere")):
        assert queue.item(item_id).state == "FAILED"
        assert sweep in queue.item(item_id).error["message"]
    assert len(await queue.jobs()) == 1


@pytest.mark.slow
async def test_schedulers_are_small_jobs_under_a_limit_of_their_own(prefect_api: PrefectServer) -> None:
    async with Sandbox(is_manual=True) as sandbox:
        queue = LaunchQueue(sandbox, max_jobs=1)
        block = await queue.create(scheduler_image="python", max_schedulers=1)
        for sweep_id in ("one", "two"):
            sandbox.wandb.put_sweep("runs", sweep_id, queue=queue.name)
        first, second = (queue.push(**scheduler(sweep_id)) for sweep_id in ("one", "two"))
        trial = queue.push("python")
        draining = asyncio.create_task(finished(agent(queues=[queue.name], drain=True, return_state=True)))

        async def jobs(count: int) -> Any:
            found = await queue.jobs()
            return found if len(found) == count else None

        async def waits() -> bool:
            launched = (await queue.launches()).get(second)
            return (
                launched is not None
                and launched.state is not None
                and launched.state.name == "WaitingForSlot"
            )

        # A scheduler takes no job's place, and the second one waits in sight for the first one's.
        started = await until(lambda: jobs(2))
        await until(waits)
        by_run = {job.labels["wandb-run-id"]: job for job in started}
        assert set(by_run) == {"one", queue.item(trial).associated_run_id}
        [pool] = sandbox.vertex.get(by_run["one"].name).job_spec.worker_pool_specs
        assert pool.machine_spec.machine_type == "e2-standard-4"
        assert list(pool.container_spec.command) == ["wandb", "scheduler", "one"]
        assert list(pool.container_spec.args)[:2] == ["--queue", "q"]
        sandbox.vertex.set_state(by_run["one"].name, JobState.JOB_STATE_FAILED, 3, "it failed")
        last = {job.labels["wandb-run-id"]: job for job in await until(lambda: jobs(3))}["two"]
        for job in (last, by_run[queue.item(trial).associated_run_id]):
            sandbox.vertex.cancel(job.name)
        await draining

        assert last.launch_state is not LaunchState.LOST
        assert "it failed" in queue.item(first).error["message"]
        sweep = sandbox.wandb.sweep("runs", "one")
        assert sweep is not None
        assert sweep.state == "CANCELED"
        async with get_client() as client:
            limit = await client.read_global_concurrency_limit_by_name(block.identity.scheduler_limit_name)
        assert (limit.limit, limit.active_slots) == (1, 0)


async def test_a_scheduler_without_an_image_is_refused_with_the_ways_out(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    queue = LaunchQueue(sandbox)
    await queue.create()
    sandbox.wandb.put_sweep("runs", "one")
    item_id = queue.push(**scheduler("one"))

    await agent(queues=[queue.name], drain=True, return_state=True)

    assert queue.item(item_id).state == "FAILED"
    for way_out in ("Sweep scheduler image", "wandb scheduler one"):
        assert way_out in queue.item(item_id).error["message"]
    assert await queue.jobs() == []
