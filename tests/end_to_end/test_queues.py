"""One agent for several queues: of other projects and regions, with fair turns under a limit they share."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate

from prefect_vertex_launch.core.shared_limit import shared_limit_name
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue, until_there
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import finished, until

BRIEFLY = ("-c", "import time; time.sleep(0.3)")


async def drain(*queues: LaunchQueue, **options: Any) -> State[Any]:
    names = [queue.name for queue in queues]
    return await finished(agent(queues=names, drain=True, return_state=True, **options))


async def shared_limit(name: str, limit: int) -> str:
    async with get_client() as client:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit))
    return name


def order_of_jobs(queues: list[LaunchQueue], jobs: list[Any]) -> str:
    """The queues of the jobs by a letter each, in the order in which the jobs were created."""
    letters = {item: chr(ord("a") + index) for index, queue in enumerate(queues) for item in [queue.name]}
    names = [re.sub(r"^sandbox-|-[0-9a-f]{12}$", "", job.labels["launch-queue"]) for job in jobs]
    return "".join(letters[name] for name in names)


@pytest.mark.slow
async def test_queues_that_share_a_limit_take_turns_under_it(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    first, second = LaunchQueue(sandbox), LaunchQueue(sandbox)
    limit = await shared_limit(f"shared-{first.name}", 1)
    for queue in (first, second):
        await queue.create(shared_limits=[limit], max_jobs=-1)
    for _ in range(3):
        first.push("python", *BRIEFLY)
    for _ in range(2):
        second.push("python", *BRIEFLY)

    assert (await drain(first, second)).is_completed()

    jobs = sorted(await first.jobs(), key=lambda job: int(job.job_id))
    assert order_of_jobs([first, second], jobs) == "ababa"
    assert await first.most_at_once() == 1
    async with get_client() as client:
        assert (await client.read_global_concurrency_limit_by_name(limit)).active_slots == 0


@pytest.mark.slow
async def test_slots_that_a_restarted_server_counts_under_a_shared_limit_are_taken_off_and_no_others(
    sandbox: Sandbox, prefect_api: PrefectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.coordination.mending.EXCESS_SECONDS", 1.0)
    monkeypatch.setattr("prefect_vertex_launch.coordination.mending.SPREAD_SECONDS", 0.1)
    monkeypatch.setattr("prefect_vertex_launch.agent.queue_worker.ADOPTION_SECONDS", 0.1)
    first, second = LaunchQueue(sandbox), LaunchQueue(sandbox)
    limit = await shared_limit(shared_limit_name(first.name), 4)
    async with get_client() as client:
        await client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=3))
    for queue in (first, second):
        await queue.create(shared_limits=[limit], max_jobs=-1)
    go = tmp_path / "go"
    first.push("python", *until_there(go))
    for _ in range(3):
        second.push("python", *until_there(go))
    draining = asyncio.create_task(drain(first, second))

    async def all_are_under_way() -> bool:
        return len(await first.jobs()) == 4

    await until(all_are_under_way)
    async with get_client() as client:
        assert (await client.read_global_concurrency_limit_by_name(limit)).active_slots == 4
    go.touch()
    assert (await draining).is_completed()
    async with get_client() as client:
        assert (await client.read_global_concurrency_limit_by_name(limit)).active_slots == 0


async def test_queues_of_other_projects_and_regions_are_served_by_one_agent(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    here, there = LaunchQueue(sandbox), LaunchQueue(sandbox)
    await here.create()
    await there.create(project="other-project", location="europe-west4")
    items = [queue.push("sandbox/no-wandb") for queue in (here, there)]

    state = await drain(here, there)

    assert state.is_completed()
    jobs = [job for queue in (here, there) for job in await queue.jobs()]
    assert sorted("/".join(job.name.split("/")[2:4]) for job in jobs) == [
        "locations/europe-west4", "locations/us-central1",
    ]  # fmt: skip
    assert len({job.name.split("/")[1] for job in jobs}) == 2
    for queue, item_id in zip((here, there), items, strict=True):
        assert queue.item(item_id).associated_run_id is not None
    [registered] = sandbox.wandb.agents.all()
    assert len(registered.queue_ids) == 2


async def test_a_queue_that_cannot_be_served_does_not_keep_the_others_waiting(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    good, broken = LaunchQueue(sandbox), LaunchQueue(sandbox)
    await good.create()
    await broken.create(shared_limits=["there-is-none"])
    item_id = good.push("sandbox/no-wandb")

    state = await drain(broken, good)

    assert good.item(item_id).associated_run_id is not None
    assert state.is_failed()
    assert f"{broken.name} was not served" in (state.message or "")
    assert "prefect gcl create there-is-none" in (state.message or "")


@pytest.mark.slow
async def test_stopped_at_wandb_an_agent_leaves_its_launches_to_the_next_one(
    sandbox: Sandbox, prefect_api: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.agent.agent.CONTACT_SECONDS", 0.1)
    queue = LaunchQueue(sandbox)
    await queue.create()
    item_id = queue.push("python", "-c", "import time; time.sleep(600)")
    serving = asyncio.create_task(
        finished(agent(queues=[queue.name], max_runtime_minutes=None, return_state=True))
    )

    async def is_running() -> bool:
        agents = sandbox.wandb.agents.all()
        return bool(await queue.jobs()) and agents[0].statuses[-1] == "RUNNING"

    await until(is_running)
    [registered] = sandbox.wandb.agents.all()
    sandbox.wandb.stop_polling(registered.id)
    state = await serving

    assert state.is_completed()
    assert "W&B asked it to stop polling" in (state.message or "")
    assert "1 handed over" in (state.message or "")
    assert registered.statuses == ["POLLING", "RUNNING", "KILLED"]
    [job] = await queue.jobs()
    assert not job.is_terminal
    assert sandbox.vertex.calls["CancelCustomJob"] == 0
    assert queue.item(item_id).state == "CLAIMED"
    sandbox.vertex.cancel(job.name)
    assert "1 adopted" in ((await drain(queue)).message or "")
