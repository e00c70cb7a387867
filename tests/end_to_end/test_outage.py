"""W&B and Vertex AI go away under an agent, and come back."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from prefect_vertex_launch.cli.demo.servers import free_port
from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.faults.registry import Fault, What
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import finished, until


async def test_an_agent_outlives_an_outage_of_wandb_and_vertex_ai(
    prefect_api: PrefectServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    # Both times the same servers: on the same ports, and they remember everything.
    same: dict[str, Any] = {
        "state": tmp_path / "state.db", "wandb_port": free_port(), "vertex_grpc_port": free_port(),
        "queued_seconds": 0, "pending_seconds": 0,
    }  # fmt: skip
    async with Sandbox(**same) as before:
        queue = LaunchQueue(before)
        await queue.create(call_timeout_seconds=1.0)
        running = queue.push("python", "-c", "import time; time.sleep(600)")
        serving = asyncio.create_task(finished(agent(queues=[queue.name], drain=True, return_state=True)))

        async def is_running() -> bool:
            return any(job.launch_state is LaunchState.RUNNING for job in await queue.jobs())

        await until(is_running)
        [job] = await queue.jobs()

    def noticed(pattern: str) -> Any:
        async def found() -> bool:
            return bool(re.search(pattern, caplog.text))

        return found

    await until(noticed("Nothing could be taken from"))
    await until(noticed("The jobs of .* could not be read"))
    async with Sandbox(**same) as after:
        queue = LaunchQueue(after, name=queue.name)
        later = queue.push("sandbox/no-wandb")

        async def has_started() -> Any:
            return queue.item(later).associated_run_id

        await until(has_started)
        assert after.vertex.calls["CancelCustomJob"] == 0
        after.vertex.cancel(job.name)
        ended = await serving

    assert ended.is_completed()
    assert "2 launched, 0 adopted" in (ended.message or "")
    assert queue.item(running).state == "FAILED"
    assert "cancelled-elsewhere" in queue.item(running).error["message"]


async def leave_running(queue: LaunchQueue) -> None:
    """Let an agent launch what is queued, and end it as soon as the job runs."""
    serving = asyncio.create_task(agent(queues=[queue.name], return_state=True))

    async def is_running() -> bool:
        return [job.launch_state for job in await queue.jobs()] == [LaunchState.RUNNING]

    await until(is_running)
    [registered] = queue.sandbox.wandb.agents.all()
    queue.sandbox.wandb.stop_polling(registered.id)
    await serving


@pytest.mark.slow
async def test_what_runs_of_a_cancelled_launch_is_ended_while_wandb_refuses_to_hear_of_it(
    prefect_api: PrefectServer, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.1)
    monkeypatch.setattr("prefect_vertex_launch.launch.stop_requests.STOP_POLL_SECONDS", 0.1)
    # The first pause is as long as ever: the cancel does not wait for its end.
    monkeypatch.setattr("prefect_vertex_launch.launch.outage.MAX_PAUSE_SECONDS", 1.0)
    queue = LaunchQueue(sandbox)
    await queue.create()
    item_id = queue.push("sandbox/hold")
    await leave_running(queue)
    refused = await sandbox.faults.add(
        Fault(server="wandb", what=What.ANSWER, operation="ackRunQueueItem", status=401, times=None)
    )
    draining = asyncio.create_task(agent(queues=[queue.name], drain=True, return_state=True))

    async def waits() -> bool:
        launched = (await queue.launches())[item_id]
        return launched.state is not None and launched.state.name == "WaitingForService"

    await until(waits)
    async with get_client() as client:
        await client.set_flow_run_state((await queue.launches())[item_id].id, Cancelling())

    async def is_cancelled() -> bool:
        return [job.launch_state for job in await queue.jobs()] == [LaunchState.CANCELLED]

    await until(is_cancelled)
    assert queue.item(item_id).state == "CLAIMED"
    await sandbox.faults.remove(refused)
    await draining
    assert "cancelled" in queue.item(item_id).error["message"]
    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.is_cancelled()


async def test_a_queue_is_left_alone_for_as_long_as_wandb_asks(
    prefect_api: PrefectServer,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.1)
    caplog.set_level(logging.WARNING)
    queue = LaunchQueue(sandbox)
    await queue.create()
    await sandbox.faults.add(
        Fault(
            server="wandb", what=What.ANSWER, operation="popFromRunQueue", status=429, retry_after_seconds=77
        )
    )
    serving = asyncio.create_task(agent(queues=[queue.name], return_state=True))

    async def is_told() -> bool:
        return f"Nothing could be taken from {queue.name}, again in 77 s" in caplog.text

    await until(is_told)
    [registered] = sandbox.wandb.agents.all()
    sandbox.wandb.stop_polling(registered.id)
    assert (await serving).is_completed()


@pytest.mark.slow
async def test_as_long_as_nobody_can_be_asked_who_stopped_a_run_nothing_is_said_of_its_end(
    prefect_api: PrefectServer, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.1)
    queue = LaunchQueue(sandbox)
    await queue.create()
    item_id = queue.push("sandbox/hold")
    await leave_running(queue)
    [job] = await queue.jobs()

    async def run_at_wandb() -> Any:
        return sandbox.wandb.run("runs", queue.item(item_id).associated_run_id)

    sandbox.wandb.runs.stop(await until(run_at_wandb))
    sandbox.vertex.cancel(job.name)
    # One question is asked four times before the launch gives up on it and waits.
    await sandbox.faults.add(
        Fault(server="wandb", what=What.ANSWER, operation="RunStatuses", status=503, times=5)
    )
    await agent(queues=[queue.name], drain=True, return_state=True)
    assert "Stopped at W&B by a user" in queue.item(item_id).error["message"]
