"""Nothing that has ended runs a second time, even where Prefect's defaults say that everything is retried."""

from __future__ import annotations

import asyncio
import sys

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, TaskRun

from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer

PROCESS_SECONDS = 110.0
# Prefect reads its defaults while it makes the flows, so they are imported in a process that has these.
RETRY_EVERYTHING = {"PREFECT_FLOWS_DEFAULT_RETRIES": "2", "PREFECT_TASKS_DEFAULT_RETRIES": "2"}
# W&B refuses the priority; the agent launches what is queued, and cannot serve its second queue.
RUN_THE_FLOWS = """
import asyncio, sys
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.flows.enqueue import enqueue

async def run_both(queue, unserved):
    form = {"project": "runs", "image": "sandbox/train", "priority": "high"}
    await enqueue(queue, form, return_state=True)
    await agent([queue, unserved], drain=True, return_state=True)

asyncio.run(run_both(*sys.argv[1:]))
"""


async def run_the_flows(server: PrefectServer, queue: LaunchQueue, unserved: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN_THE_FLOWS, queue.name, unserved,
        env=server.environment | RETRY_EVERYTHING, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output = (await asyncio.wait_for(process.communicate(), PROCESS_SECONDS))[0].decode()
    assert process.returncode == 0, output


async def flow_run_named(name: str) -> FlowRun:
    async with get_client() as client:
        wanted = FlowRunFilter.model_validate({"name": {"any_": [name]}})
        [found] = await client.read_flow_runs(flow_run_filter=wanted)
    return found


async def task_run_named(name: str, flow_run: FlowRun) -> TaskRun:
    """Return a task run as soon as the server has recorded its end, which it does a moment later."""
    wanted = FlowRunFilter.model_validate({"id": {"any_": [flow_run.id]}})
    task = TaskRunFilter.model_validate({"name": {"like_": name}})
    async with get_client() as client:
        while True:
            for found in await client.read_task_runs(flow_run_filter=wanted, task_run_filter=task):
                if found.state is not None and found.state.is_final():
                    return found
            await asyncio.sleep(0.1)


@pytest.mark.timeout(180)
@pytest.mark.slow
async def test_what_has_failed_runs_once_whatever_prefects_defaults_say(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    queue, unserved = LaunchQueue(sandbox), LaunchQueue(sandbox)
    await queue.create()
    await unserved.create()
    sandbox.wandb.delete_queue(sandbox.wandb.queue(unserved.name))
    item_id = queue.push("python", "-c", "raise SystemExit(1)")

    await run_the_flows(prefect_api, queue, unserved.name)

    launch = (await queue.launches())[item_id]
    agent = await flow_run_named(f"agent {queue.name}, {unserved.name}")
    enqueue = await flow_run_named(f"enqueue on {queue.name}")
    push = await task_run_named("push", enqueue)
    ended = {run.name: (run.state_name, run.run_count) for run in (launch, agent, enqueue, push)}
    assert ended == dict.fromkeys(ended, ("Failed", 1))
    assert len(await queue.jobs()) == 1
