"""Whatever W&B and Vertex AI answer, the agent lives on, and what comes after it is launched as ever.

One agent serves its queue while answers are changed, one example after the other; FUZZ_EXAMPLES makes it
more of them, and others each time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from random import Random
from typing import Any

import pytest
from prefect import State
from prefect.client.schemas.objects import FlowRun, StateType
from pydantic import SecretStr

from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.flows import launch
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.sandbox.wandb.items import QueueItem, QueueItemState
from tests.end_to_end.fuzzing_proxy import Fuzz, fuzzing_proxy
from tests.end_to_end.launch_queue import LaunchQueue
from tests.eventually import finished, until

FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
# Each is so many changed answers, and what it takes until all is settled.
EXAMPLES = FUZZ_EXAMPLES // 100 or 3
CHANGES = 15
PROBABILITY = 0.25
ITEMS = 4
# What has to be among the calls whose answers were changed.
SEEN = {"popFromRunQueue", "ackRunQueueItem", "CreateCustomJob", "ListCustomJobs"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is tried again is so soon."""
    for name, value in {
        "prefect_vertex_launch.agent.agent.CONTACT_SECONDS": 0.2,
        "prefect_vertex_launch.launch.stop_requests.STOP_POLL_SECONDS": 0.2,
        "prefect_vertex_launch.launch.outage.FIRST_PAUSE_SECONDS": 0.5,
        "prefect_vertex_launch.launch.outage.MAX_PAUSE_SECONDS": 1.0,
        "prefect_vertex_launch.agent.round_robin.MAX_BACKOFF_SECONDS": 0.5,
        "prefect_vertex_launch.launch.find_jobs.LOOK_AGAIN_SECONDS": (0.1, 0.2),
        "prefect_vertex_launch.launch.find_jobs.LAST_LOOKS_SECONDS": (0.1, 0.2),
        "prefect_vertex_launch.coordination.launch_store.CRASH_PAUSE_SECONDS": 0.5,
        "prefect_vertex_launch.agent.queue_worker.ADOPTION_SECONDS": 0.5,
        "prefect_vertex_launch.vertex.job_watcher.MAX_BACKOFF_SECONDS": 0.5,
        "prefect_vertex_launch.core.retry.FIRST_PAUSE_SECONDS": 0.1,
    }.items():
        monkeypatch.setattr(name, value)
    for step in (launch.claim, launch.render, launch.submit, launch.wait, launch.report):
        monkeypatch.setattr(step, "retry_delay_seconds", [0.1] * 4)


@pytest.mark.usefixtures("prefect_api", "impatient")
@pytest.mark.slow
async def test_an_agent_bears_whatever_it_is_answered() -> None:
    seed = time.time_ns() if FUZZ_EXAMPLES else 1
    fuzz = Fuzz(Random(seed))
    async with (
        Sandbox(queued_seconds=0, pending_seconds=0) as sandbox,
        fuzzing_proxy(sandbox, fuzz) as proxy,
    ):
        queue = LaunchQueue(sandbox)
        block = await queue.create(endpoint=proxy.vertex_grpc_url, call_timeout_seconds=2.0)
        wandb = WandbCredentials(api_key=SecretStr(sandbox.api_key), base_url=proxy.wandb_url)
        await wandb.asave(queue.name, overwrite=True)
        block.wandb_credentials = wandb
        await block.asave(queue.name, overwrite=True)
        queue.identity = block.identity
        serving = asyncio.create_task(agent(queues=[queue.name], return_state=True))
        await until(sandbox.wandb.agents.all)
        for number in itertools.count():
            if number >= EXAMPLES and fuzz.seen >= SEEN:
                break
            await _example(queue, fuzz, serving, seed)
        # More than one if it was told that it is not registered.
        for registered in sandbox.wandb.agents.all():
            sandbox.wandb.stop_polling(registered.id)
        assert (await finished(serving)).is_completed(), f"seed {seed}"


async def _example(queue: LaunchQueue, fuzz: Fuzz, serving: asyncio.Task[State[Any]], seed: int) -> None:
    """Change answers for a while; then a good item is seen through, and those of before end in some way."""
    meanwhile = [queue.push("sandbox/no-wandb") for _ in range(ITEMS)]
    leases = queue.sandbox.wandb.items
    leases.lease_seconds, fuzz.probability = 1.0, PROBABILITY
    before = fuzz.changed
    await until(lambda: fuzz.changed >= before + CHANGES or serving.done())
    leases.lease_seconds, fuzz.probability = 60.0, 0.0
    good = queue.push("sandbox/no-wandb")

    async def have_ended() -> bool:
        assert not serving.done(), f"seed {seed}: {serving}"
        launches = await queue.launches()
        return all(_is_over(queue.item(each), launches.get(each)) for each in (*meanwhile, good))

    await until(have_ended)
    launched = (await queue.launches())[good]
    assert launched.state_type is StateType.FAILED
    assert "wandb.init" in (launched.state.message if launched.state and launched.state.message else "")


def _is_over(item: QueueItem, launched: FlowRun | None) -> bool:
    """Whether a launch has ended for good: one whose lease was over is taken again."""
    if launched is None or launched.state is None:
        return False
    return launched.state.is_final() and item.state not in {QueueItemState.PENDING, QueueItemState.LEASED}
