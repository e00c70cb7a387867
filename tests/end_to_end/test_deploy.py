"""`vertex-launch deploy`: the deployments it makes, and what it says when it cannot."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from importlib.metadata import version

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from typer.testing import CliRunner, Result

from prefect_vertex_launch.cli.errors import NOT_READY, USAGE
from prefect_vertex_launch.cli.main import app
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer

CONTAINERS = {
    "job_configuration": {"image": "{{ image }}"},
    "variables": {"properties": {"image": {"type": "string"}}},
}


@pytest.fixture
async def queue(sandbox: Sandbox, prefect_api: PrefectServer) -> LaunchQueue:
    """A queue with its block, and a work pool of the same name whose workers run processes."""
    launch_queue = LaunchQueue(sandbox)
    await launch_queue.create()
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=launch_queue.name, type="process"))
    return launch_queue


async def deploy(queue: str, pool: str, *options: str) -> Result:
    """Run the command as its own process would, while the sandbox serves from this event loop."""
    arguments = ["deploy", "--queue", queue, "--pool", pool, *options]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


async def read(name: str) -> DeploymentResponse:
    async with get_client() as client:
        return await client.read_deployment_by_name(name)


async def test_the_three_flows_are_deployed_and_the_next_command_is_said(queue: LaunchQueue) -> None:
    result = await deploy(queue.name, queue.name)

    assert result.exit_code == 0, result.output
    names = [f"{flow}/{queue.name}" for flow in ("agent", "launch", "enqueue")]
    assert [line.split()[:2] for line in result.output.splitlines()[:3]] == [
        ["created", name] for name in names
    ]
    assert result.output.splitlines()[3:] == [f"next: prefect worker start --pool {queue.name}"]
    agent, launch, enqueue = [await read(name) for name in names]
    for deployment in (agent, launch, enqueue):
        assert (deployment.entrypoint or "").startswith("prefect_vertex_launch.")
        assert ":" not in (deployment.entrypoint or "")
        assert (deployment.path, deployment.pull_steps) == (None, [])
        assert deployment.work_pool_name == queue.name
        assert deployment.tags == ["vertex-launch"]
        assert deployment.version == version("prefect-vertex-launch")
        assert deployment.enforce_parameter_schema
    assert agent.parameters == {
        "queues": [queue.name], "drain": False, "max_runtime_minutes": 55, "stand_aside": True
    }  # fmt: skip
    assert launch.parameters == enqueue.parameters == {"queue": queue.name}
    assert "LaunchForm" in enqueue.parameter_openapi_schema["definitions"]
    [schedule] = agent.schedules
    assert (schedule.schedule.interval, schedule.active) == (timedelta(minutes=5), True)
    assert (launch.schedules, enqueue.schedules) == ([], [])


async def test_deploying_again_brings_them_up_to_date(queue: LaunchQueue) -> None:
    await deploy(queue.name, queue.name)
    first = await read(f"agent/{queue.name}")
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=f"{queue.name}-2", type="process"))

    again = await deploy(queue.name, f"{queue.name}-2", "--every", "30")

    assert [line.split()[0] for line in again.output.splitlines()[:3]] == ["updated"] * 3
    second = await read(f"agent/{queue.name}")
    assert (second.id, second.work_pool_name) == (first.id, f"{queue.name}-2")
    assert [each.schedule.interval for each in second.schedules] == [timedelta(minutes=30)]

    unscheduled = await deploy(queue.name, queue.name, "--no-schedule")

    assert unscheduled.exit_code == 0, unscheduled.output
    assert (await read(f"agent/{queue.name}")).schedules == []


async def test_a_pool_of_containers_takes_an_image_and_is_asked_for_one(queue: LaunchQueue) -> None:
    pool = f"{queue.name}-containers"
    async with get_client() as client:
        await client.create_work_pool(
            WorkPoolCreate(name=pool, type="containers:push", base_job_template=CONTAINERS)
        )

    without = await deploy(queue.name, pool)
    assert without.output.splitlines()[3:] == [
        "note: the image of this work pool needs prefect-vertex-launch; --image names another one"
    ]

    result = await deploy(queue.name, pool, "--image", "registry/launch:1")
    assert len(result.output.splitlines()) == 3  # nothing is left to do: no worker serves this pool
    assert (await read(f"agent/{queue.name}")).job_variables == {"image": "registry/launch:1"}


async def test_an_image_for_a_pool_of_processes_is_refused(queue: LaunchQueue) -> None:
    result = await deploy(queue.name, queue.name, "--image", "registry/launch:1")
    assert result.exit_code == USAGE
    assert result.stderr.splitlines() == [
        f"error: the work pool '{queue.name}' is of type process, which runs flows without an image",
        "hint: leave --image out, and install prefect-vertex-launch where its workers run",
    ]


async def test_a_block_or_pool_that_is_not_there_is_named_with_the_nearest(queue: LaunchQueue) -> None:
    result = await deploy(queue.name[:-1], queue.name)
    assert result.exit_code == NOT_READY
    error, hint = result.stderr.splitlines()
    assert error == f"error: there is no VertexLaunchQueue block named '{queue.name[:-1]}'"
    assert f"did you mean '{queue.name}'?" in hint

    missing = queue.name[:-1]
    result = await deploy(queue.name, missing)
    assert result.exit_code == NOT_READY
    assert result.stderr.splitlines() == [
        f"error: there is no work pool named '{missing}'",
        f"hint: did you mean '{queue.name}'? If not, make it with "
        f"`prefect work-pool create {missing} --type process`",
    ]
    result = await deploy(queue.name, "quite another one")
    assert result.stderr.splitlines()[1] == (
        "hint: make it with `prefect work-pool create 'quite another one' --type process`"
    )
