"""`prefect deploy`, a worker, and the deployments at work, as docs/deploying.md has it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import pytest_asyncio
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort

from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer, prefect_client_of
from tests.eventually import HANG_SECONDS, finished

T = TypeVar("T")

CHECKOUT = Path(__file__).parents[2]
HOLD = ("-c", "import time; time.sleep(600)")

# Each starts processes of Prefect's, which takes a busy machine long.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1200), pytest.mark.slow]


@dataclass(frozen=True)
class Deployed:
    """The deployments of prefect.yaml for one queue, and a worker that runs them."""

    queue: LaunchQueue
    environment: dict[str, str]
    worker_log: Path

    def name(self, flow_name: str) -> str:
        """Return the deployment of a flow for this queue."""
        return f"{flow_name}/{self.queue.name}"

    async def prefect(self, *arguments: str) -> str:
        """Run the `prefect` command in the checkout and return what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "prefect", "--no-prompt", *arguments,
            env=self.environment, cwd=CHECKOUT, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output = (await finished(process.communicate()))[0].decode()
        assert process.returncode == 0, output
        return output

    async def runs(self, flow_name: str, *states: StateType) -> list[FlowRun]:
        """Return the flow runs of a flow's deployment, in these states if any are named, oldest first."""
        async with get_client() as client:
            found = await client.read_deployment_by_name(self.name(flow_name))
            wanted: dict[str, Any] = {"deployment_id": {"any_": [found.id]}}
            if states:
                wanted["state"] = {"type": {"any_": list(states)}}
            return await client.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate(wanted), sort=FlowRunSort.START_TIME_ASC
            )

    async def until(self, look: Callable[[], Awaitable[T]], what: str) -> T:
        """Return the first thing that is found and not empty; fail with what the flow runs have said."""
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while not (found := await look()):
                    await asyncio.sleep(0.2)
                return found
        except TimeoutError:
            said = self.worker_log.read_text(errors="replace")
            pytest.fail(f"{what}: not within {HANG_SECONDS:.0f} s\n{said}")

    async def ended(self, flow_run_id: UUID) -> FlowRun:
        async def look() -> FlowRun | None:
            async with get_client() as client:
                flow_run = await client.read_flow_run(flow_run_id)
            return flow_run if flow_run.state is not None and flow_run.state.is_final() else None

        found = await self.until(look, f"flow run {flow_run_id} ends")
        assert found is not None
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployed(
    prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Deployed]:
    """What a person does once: a queue with its block, a pool, `prefect deploy --all`, a worker."""
    async with Sandbox(queued_seconds=0, pending_seconds=0) as sandbox:
        queue = LaunchQueue(sandbox, max_jobs=2)
        environment = prefect_server.environment | {
            "VERTEX_LAUNCH_QUEUE": queue.name,
            "VERTEX_LAUNCH_POOL": queue.name,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        log = tmp_path_factory.mktemp("worker") / "worker.log"
        result = Deployed(queue, environment, log)
        with prefect_client_of(prefect_server):
            await queue.create()
            await result.prefect("work-pool", "create", queue.name, "--type", "process")
            await result.prefect("deploy", "--all")
            with log.open("wb") as output:
                worker = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "prefect", "worker", "start", "--pool", queue.name,
                    env=environment, cwd=CHECKOUT, start_new_session=True,
                    stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                )  # fmt: skip
            try:
                yield result
            finally:
                # The group, not the worker alone: it would wait for its flow runs without end.
                with suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)
                await worker.wait()


async def test_every_deployment_is_there_and_its_schedule_produces_runs(deployed: Deployed) -> None:
    async with get_client() as client:
        agent = await client.read_deployment_by_name(deployed.name("agent"))
        for flow_name in ("launch", "enqueue"):
            assert await client.read_deployment_by_name(deployed.name(flow_name))
    assert agent.parameters["queues"] == [deployed.queue.name]
    assert agent.parameters["stand_aside"]

    scheduled = await deployed.until(lambda: deployed.runs("agent", StateType.SCHEDULED), "scheduled runs")

    assert all(run.auto_scheduled for run in scheduled)


async def test_the_launch_deployment_takes_the_next_run_and_sees_it_through(deployed: Deployed) -> None:
    item_id = deployed.queue.push("sandbox/train", name="by hand")

    await deployed.prefect("deployment", "run", deployed.name("launch"))

    [launched] = await deployed.until(lambda: deployed.runs("launch"), "the launch")
    launched = await deployed.ended(launched.id)
    assert launched.state is not None
    assert launched.state.is_completed(), launched.state
    assert launched.name == "by hand"
    item = deployed.queue.item(item_id)
    assert {f"item:{item_id}", f"run:{item.associated_run_id}"} <= set(launched.tags)
    run = deployed.queue.sandbox.wandb.run("runs", item.associated_run_id)
    assert run is not None
    assert run.state == "finished"


async def test_cancelling_a_launch_that_a_worker_runs_cancels_its_job(deployed: Deployed) -> None:
    deployed.queue.push("python", *HOLD, name="to cancel")
    before = {run.id for run in await deployed.runs("launch")}
    await deployed.prefect("deployment", "run", deployed.name("launch"))

    async def live() -> list[Any]:
        return [job for job in await deployed.queue.jobs() if job.launch_state is LaunchState.RUNNING]

    [job] = await deployed.until(live, "the job runs")
    [launched] = [run for run in await deployed.runs("launch") if run.id not in before]
    await deployed.prefect("flow-run", "cancel", str(launched.id))

    launched = await deployed.ended(launched.id)
    assert launched.state is not None
    assert launched.state.is_cancelled(), launched.state

    async def cancelled() -> bool:
        states = {each.name: each.launch_state for each in await deployed.queue.jobs()}
        return states[job.name] is LaunchState.CANCELLED

    await deployed.until(cancelled, "the job is cancelled")


async def test_an_agent_that_its_schedule_started_serves_the_queue(deployed: Deployed) -> None:
    item_id = deployed.queue.push("sandbox/train", name="by schedule")
    async with get_client() as client:
        found = await client.read_deployment_by_name(deployed.name("agent"))
        every_so_often = IntervalSchedule(interval=timedelta(seconds=10))
        [schedule] = await client.create_deployment_schedules(found.id, [(every_so_often, True)])
        await deployed.until(lambda: deployed.runs("agent", StateType.RUNNING), "an agent starts")
        await client.delete_deployment_schedule(found.id, schedule.id)

    async def finished() -> bool:
        run_id = deployed.queue.item(item_id).associated_run_id
        run = run_id and deployed.queue.sandbox.wandb.run("runs", run_id)
        return bool(run) and run.state == "finished"

    await deployed.until(finished, "the run finishes")
    launched = (await deployed.queue.launches())[item_id]
    # The next one may have been started already.
    [serving] = [
        run for run in await deployed.runs("agent", StateType.RUNNING) if f"agent:{run.id}" in launched.tags
    ]
    assert serving.auto_scheduled

    async with get_client() as client:
        second = await client.create_flow_run_from_deployment(found.id)
    second = await deployed.ended(second.id)
    assert second.state is not None
    assert second.state.name == "StoodAside", second.state
    assert serving.name in (second.state.message or "")

    await deployed.prefect("flow-run", "cancel", str(serving.id))
    serving = await deployed.ended(serving.id)
    assert serving.state is not None
    assert serving.state.is_cancelled(), serving.state
