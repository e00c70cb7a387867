"""The agent and its launches, with a real Prefect server and the sandbox."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import State, Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from prefect.states import Running

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.coordination.slots import QueueSlots
from prefect_vertex_launch.core.clock import SystemClock
from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue, until_there
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import finished, until

EXIT = "raise SystemExit({code})"


async def drain(queue: LaunchQueue, **options: Any) -> State[Any]:
    return await finished(agent(queues=[queue.name], drain=True, return_state=True, **options))


def python(code: str) -> tuple[str, ...]:
    return ("-c", code)


async def test_a_run_that_succeeds_completes_its_flow_run_and_keeps_its_item(queue: LaunchQueue) -> None:
    item_id = queue.push("sandbox/train", name="first run")

    state = await drain(queue)

    assert state.is_completed()
    launched = (await queue.launches())[item_id]
    assert launched.name == "first run"
    assert launched.state is not None
    assert launched.state.is_completed(), launched.state
    item = queue.item(item_id)
    assert item.state == "CLAIMED"
    run = queue.sandbox.wandb.run("runs", item.associated_run_id)
    assert run is not None
    assert run.state == "finished"
    [job] = await queue.jobs()
    assert job.labels["wandb-run-id"] == item.associated_run_id


async def test_a_failed_job_is_explained_in_prefect_and_at_wandb(queue: LaunchQueue) -> None:
    item_id = queue.push("python", *python(EXIT.format(code=3)))

    await drain(queue)

    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.is_failed()
    assert "non-zero status of 3" in (launched.state.message or "")
    item = queue.item(item_id)
    assert item.state == "FAILED"
    assert "non-zero status of 3" in json.dumps(vars(item), default=str)


async def test_a_run_that_never_called_wandb_init_fails_its_item(queue: LaunchQueue) -> None:
    item_id = queue.push("python", *python("pass"))

    await drain(queue)

    item = queue.item(item_id)
    assert item.state == "FAILED"
    assert "failed to call wandb.init" in json.dumps(vars(item), default=str)


async def test_a_run_stopped_at_wandb_cancels_its_job_and_says_who(queue: LaunchQueue) -> None:
    item_id = queue.push("sandbox/hold")
    draining = asyncio.create_task(drain(queue))

    async def running_run() -> Any:
        run_id = queue.item(item_id).associated_run_id
        return run_id and queue.sandbox.wandb.run("runs", run_id)

    queue.sandbox.wandb.runs.stop(await until(running_run))
    await draining

    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    [job] = await queue.jobs()
    assert job.launch_state in {LaunchState.CANCELLED, LaunchState.FAILED, LaunchState.SUCCEEDED}
    assert launched.state.is_final()


async def test_a_flow_run_cancelled_in_prefect_cancels_its_job(queue: LaunchQueue) -> None:
    from prefect.states import Cancelling

    item_id = queue.push("sandbox/hold")
    draining = asyncio.create_task(drain(queue))

    async def live_job() -> Any:
        return [job for job in await queue.jobs() if job.launch_state is LaunchState.RUNNING]

    await until(live_job)
    launched = (await queue.launches())[item_id]
    async with get_client() as client:
        await client.set_flow_run_state(launched.id, Cancelling())
    await draining

    [job] = await queue.jobs()
    assert job.launch_state is LaunchState.CANCELLED
    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.is_cancelled()
    assert "Cancelled in Prefect by a user" in (launched.state.message or "")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="as it was"),
        pytest.param({"location": "europe-west4"}, id="another region", marks=pytest.mark.slow),
        pytest.param({"project": "other-project"}, id="another project", marks=pytest.mark.slow),
        pytest.param(
            {"secure_mode": True, "allowed_images": ["none/such"]},
            id="an image not allowed any more",
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_an_agent_that_ends_leaves_its_launch_to_the_next_one_however_the_queue_was_changed(
    queue: LaunchQueue, change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.5)
    go = tmp_path / "go"
    item_id = queue.push("python", *until_there(go))
    serving = asyncio.create_task(finished(agent(queues=[queue.name], return_state=True)))

    async def is_running() -> bool:
        return [job.launch_state for job in await queue.jobs()] == [LaunchState.RUNNING]

    await until(is_running)
    [registered] = queue.sandbox.wandb.agents.all()
    queue.sandbox.wandb.stop_polling(registered.id)
    first = await serving
    handed_over = (await queue.launches())[item_id]
    before = await queue.jobs()
    await queue.create(**change)
    go.touch()
    second = await drain(queue)

    assert "1 handed over" in (first.message or "")
    assert handed_over.state is not None
    assert handed_over.state.name == "AwaitingAdoption"
    assert "1 adopted" in (second.message or "")
    launched = (await queue.launches())[item_id]
    assert launched.id == handed_over.id
    assert launched.state is not None
    assert launched.state.is_failed()
    assert "wandb.init" in (launched.state.message or "")
    after = await queue.jobs()
    await queue.create()
    assert {job.name for job in [*after, *await queue.jobs()]} == {job.name for job in before}


async def test_live_jobs_stay_under_the_limit_and_the_limit_is_free_at_the_end(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    queue = LaunchQueue(sandbox, max_jobs=2)
    block = await queue.create()
    for _ in range(5):
        queue.push("python", *python("import time; time.sleep(0.5)"))

    assert (await drain(queue)).is_completed()

    assert len(await queue.jobs()) == 5
    assert 1 <= await queue.most_at_once() <= 2
    async with get_client() as client:
        limit = await client.read_global_concurrency_limit_by_name(block.identity.limit_name)
    assert (limit.limit, limit.active_slots) == (2, 0)


async def test_no_secret_reaches_parameters_states_or_logs(queue: LaunchQueue) -> None:
    canary = "canary" * 8
    item_id = queue.push(
        "python", *python("import os; print(os.environ['WANDB_API_KEY'])"), _wandb_api_key=canary
    )

    await drain(queue)

    launched = (await queue.launches())[item_id]
    async with get_client() as client:
        logs = await client.read_logs(LogFilter.model_validate({"flow_run_id": {"any_": [launched.id]}}))
        task_runs = await client.read_task_runs()
    written = launched.model_dump_json() + "".join(log.message for log in logs) + str(task_runs)
    assert canary not in written
    assert queue.sandbox.api_key not in written
    [job] = await queue.jobs()
    assert canary in queue.sandbox.vertex.log(job.name)


async def test_a_wrong_api_key_ends_the_agent_with_what_to_do(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials

    queue = LaunchQueue(sandbox)
    block = await queue.create()
    wrong = WandbCredentials(api_key="wrong" * 10, base_url=sandbox.wandb_url)
    await wrong.asave(f"{queue.name}-wrong", overwrite=True)
    block = VertexLaunchQueue(**{**dict(block), "wandb_credentials": wrong})
    await block.asave(queue.name, overwrite=True)

    state = await drain(queue)

    assert state.is_failed()
    assert "API key" in (state.message or "")
    assert "wrongwrong" not in (state.message or "")


async def test_a_queue_that_does_not_exist_ends_the_agent_with_the_names_there_are(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    queue = LaunchQueue(sandbox)
    block = await queue.create()
    await VertexLaunchQueue(**{**dict(block), "queue": queue.name + "x"}).asave(queue.name, overwrite=True)

    state = await drain(queue)

    assert state.is_failed()
    assert f"Did you mean {queue.name}" in (state.message or "")


async def test_the_agent_carries_on_a_launch_whose_worker_crashed(queue: LaunchQueue, tmp_path: Path) -> None:
    from prefect_vertex_launch.flows.launch import launch

    go = tmp_path / "go"
    item_id = queue.push("python", *until_there(go))
    alone = asyncio.create_task(launch(queue=queue.name, return_state=True))

    async def live_job() -> Any:
        return [job for job in await queue.jobs() if job.launch_state is LaunchState.RUNNING]

    await until(live_job)
    alone.cancel()
    await asyncio.wait({alone})
    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.is_crashed()
    go.touch()

    state = await drain(queue)

    assert "1 adopted" in (state.message or "")
    after = (await queue.launches())[item_id]
    assert after.id == launched.id
    assert after.state is not None
    assert after.state.is_final()
    assert len(await queue.jobs()) == 1


async def test_the_limit_follows_the_block(sandbox: Sandbox, prefect_api: PrefectServer) -> None:
    queue = LaunchQueue(sandbox, max_jobs=2)
    block = await queue.create()
    await drain(queue)
    await queue.create(max_jobs=7)

    await drain(queue)

    async with get_client() as client:
        limit = await client.read_global_concurrency_limit_by_name(block.identity.limit_name)
    assert (limit.limit, limit.active_slots) == (7, 0)


async def flow_run_of_an_earlier_agent(queue: LaunchQueue, item_id: str, owner: Any) -> Any:
    """The launch that an agent had made of an item, whose lease has ended since."""
    async with get_client() as client:
        block = await VertexLaunchQueue.aload(queue.name)
        runs = LaunchStore(
            client, block_name=queue.name, queue=block.identity, owner_id=owner,
            clock=SystemClock(),
        )  # fmt: skip
        async with block.open_wandb_queue() as wandb:
            popped = await wandb.pop(None)
        assert popped is not None
        assert popped.item_id == item_id
        slots = QueueSlots(block, client, holder_id=owner, clock=SystemClock()).jobs
        await slots.ensure_limit()
        slot = await slots.try_take()
        assert slot is not None
        flow_run = await runs.create(
            QueueItem.from_popped(popped).request(), frozenset(), slots.labels_of(slot)
        )

    async def is_back() -> bool:
        return queue.item(item_id).state == "PENDING"

    await until(is_back)
    return flow_run


@pytest.mark.slow
async def test_an_item_that_comes_again_after_its_lease_goes_on_in_the_flow_run_it_has(
    prefect_api: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It may be adopted before it comes again, and its launch then looks for a job of before.
    monkeypatch.setattr("prefect_vertex_launch.launch.find_jobs.LOOK_AGAIN_SECONDS", (0.1, 0.1))
    monkeypatch.setattr("prefect_vertex_launch.launch.find_jobs.LAST_LOOKS_SECONDS", (0.1, 0.1))
    async with Sandbox(queued_seconds=0, pending_seconds=0, lease_seconds=2) as sandbox:
        queue = LaunchQueue(sandbox)
        await queue.create()
        item_id = queue.push("sandbox/train")
        before = await flow_run_of_an_earlier_agent(queue, item_id, owner=uuid4())
        sandbox.wandb.items.lease_seconds = 60.0
        await drain(queue)

        launched = (await queue.launches())[item_id]
        assert launched.id == before.id
        assert launched.state is not None
        assert launched.state.is_completed(), launched.state
        assert len(await queue.jobs()) == 1


async def test_a_launch_whose_agent_is_alive_is_left_to_it(prefect_api: PrefectServer) -> None:
    async with Sandbox(queued_seconds=0, pending_seconds=0, lease_seconds=2) as sandbox:
        queue = LaunchQueue(sandbox)
        await queue.create()
        item_id = queue.push("sandbox/train")
        async with get_client() as client:
            other = await client.create_flow_run(agent, parameters={"queues": ["other"]}, state=Running())
        before = await flow_run_of_an_earlier_agent(queue, item_id, owner=other.id)
        state = await drain(queue)

        assert "0 launched, 0 adopted" in (state.message or "")
        launched = (await queue.launches())[item_id]
        assert launched.id == before.id
        assert launched.state is not None
        assert launched.state.is_pending()
        assert await queue.jobs() == []


@pytest.mark.slow
async def test_a_termination_before_a_step_has_begun_is_no_failure_of_the_launch(
    queue: LaunchQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the process may come anywhere: here, while a task gets its run."""
    monkeypatch.setattr("prefect_vertex_launch.coordination.launch_store.CRASH_PAUSE_SECONDS", 0.2)
    create_local_run, terminations = Task.create_local_run, [asyncio.CancelledError()]

    async def terminated_once(task: Task[Any, Any], *args: Any, **more: Any) -> Any:
        if task.name == "wait" and terminations:
            raise terminations.pop()
        return await create_local_run(task, *args, **more)

    monkeypatch.setattr(Task, "create_local_run", terminated_once)
    item_id = queue.push("sandbox/train")
    await drain(queue)
    left = (await queue.launches())[item_id]
    await drain(queue)

    assert left.state is not None
    assert left.state.is_crashed()
    launched = (await queue.launches())[item_id]
    assert launched.state is not None
    assert launched.state.is_completed(), launched.state
    assert len(await queue.jobs()) == 1


@pytest.mark.slow
async def test_an_agent_that_is_terminated_leaves_its_launch_to_the_next_one_and_touches_no_job(
    queue: LaunchQueue, prefect_api: PrefectServer
) -> None:
    item_id = queue.push("python", *python("import time; time.sleep(600)"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "prefect_vertex_launch.cli.main", "agent", "--queue", queue.name,
        env=prefect_api.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip

    async def live_job() -> Any:
        return [job for job in await queue.jobs() if job.launch_state is LaunchState.RUNNING]

    [job] = await until(live_job)
    process.send_signal(signal.SIGTERM)
    printed, _ = await process.communicate()

    # Prefect's engine makes an exception of the signal; where that one gets lost the agent ends by itself.
    assert process.returncode in {0, 143}, printed.decode()
    left = (await queue.launches())[item_id]
    assert left.state is not None
    assert left.state.is_crashed() or left.state.name == "AwaitingAdoption"
    assert queue.sandbox.vertex.calls["CancelCustomJob"] == 0
    queue.sandbox.vertex.cancel(job.name)
    assert "1 adopted" in ((await drain(queue)).message or "")
    assert (await queue.launches())[item_id].id == left.id
