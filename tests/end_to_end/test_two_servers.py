"""Two W&B servers whose ids both count from 1, with queues of one name, over one project of Google's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue, until_there
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import finished, until


@pytest.fixture
async def queues(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> AsyncIterator[tuple[LaunchQueue, LaunchQueue]]:
    """The queue of production, and the one of the same name at the other server."""
    async with Sandbox() as other:
        production = LaunchQueue(sandbox)
        staging = LaunchQueue(other, queue=production.queue)
        block = await production.create()
        await staging.create(endpoint=sandbox.vertex_grpc_url, gcp_credentials=block.gcp_credentials)
        yield production, staging


async def drain(block_name: str) -> None:
    state = await finished(agent(queues=[block_name], drain=True, return_state=True))
    assert state.is_completed()


@pytest.mark.slow
async def test_each_server_s_item_gets_a_job_and_a_launch_of_its_own(
    queues: tuple[LaunchQueue, LaunchQueue], tmp_path: Path
) -> None:
    production, staging = queues
    marker = tmp_path / "staging has run"
    fails = production.push("python", "-c", "raise SystemExit(3)")
    touches = staging.push("python", "-c", f"open({str(marker)!r}, 'w')")
    assert fails == touches

    await drain(production.name)
    await drain(staging.name)

    assert marker.exists()
    jobs = await production.jobs()
    assert len({job.labels["launch-item"] for job in jobs}) == len(jobs) == 2
    assert len({job.labels["launch-queue"] for job in jobs}) == 2
    assert "status of 3" in production.item(fails).error["message"]
    assert "wandb.init" in staging.item(touches).error["message"]


async def test_a_cancel_at_one_server_leaves_the_other_s_job_alone(
    queues: tuple[LaunchQueue, LaunchQueue], tmp_path: Path
) -> None:
    production, staging = queues
    go = tmp_path / "go"
    ours = production.push("python", *until_there(go))
    theirs = staging.push("python", *until_there(go))
    both = asyncio.gather(drain(production.name), drain(staging.name))

    async def running() -> bool:
        states = [job.launch_state for job in await production.jobs()]
        return states == [LaunchState.RUNNING] * 2

    await until(running)
    assert ours == theirs
    async with get_client() as client:
        await client.set_flow_run_state((await staging.launches())[theirs].id, Cancelling())

    async def is_cancelled() -> bool:
        return [job.launch_state for job in await staging.jobs_of(theirs)] == [LaunchState.CANCELLED]

    await until(is_cancelled)
    go.touch()
    await both

    [own] = await production.jobs_of(ours)
    assert own.launch_state is LaunchState.SUCCEEDED
    assert (await staging.launches())[theirs].state_name == "Cancelled"
