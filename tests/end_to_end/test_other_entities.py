"""What an item names of another entity is acted on with the block's key only if the block says so."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer

OTHER = "other-team"
AUTHORS_KEY = "the-key-of-the-author"
SCHEDULER = {
    "uri": "placeholder-uri-scheduler",
    "docker": None,
    "resource": "local-process",
    "run_id": "s1",
    "overrides": {"entry_point": ["wandb", "scheduler", "s1"], "args": ["--nonsense", 5]},
}


@pytest.fixture
async def queue(sandbox: Sandbox, prefect_api: PrefectServer) -> LaunchQueue:
    return LaunchQueue(sandbox)


async def served(queue: LaunchQueue, image: str = "sandbox/no-wandb", **changes: Any) -> tuple[str, int]:
    """Serve one item; return the message of its failure, and how many jobs there are."""
    item_id = queue.push(image, **changes)
    await agent(queues=[queue.name], drain=True, return_state=True)
    return (queue.item(item_id).error or {}).get("message", ""), len(await queue.jobs())


@pytest.mark.parametrize("changes", [{"entity": OTHER}, {"docker": None, "job": f"{OTHER}/runs/job-a:v0"}])
async def test_an_item_of_another_entity_gets_no_job_with_the_key_of_the_block(
    queue: LaunchQueue, changes: dict[str, Any]
):
    await queue.create()
    message, jobs = await served(queue, **changes)
    assert f"'{OTHER}' is not the queue's entity, {queue.sandbox.entity}" in message
    assert "Other entities" in message
    assert jobs == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "changes"),
    [({"allowed_entities": ["other-*"]}, {}), ({}, {"_wandb_api_key": AUTHORS_KEY})],
)
async def test_another_entity_is_served_if_the_block_allows_it_or_with_its_author_s_key(
    queue: LaunchQueue, settings: dict[str, Any], changes: dict[str, Any]
):
    await queue.create(**settings)
    message, jobs = await served(queue, entity=OTHER, **changes)
    assert "is not the queue's entity" not in message
    assert jobs == 1


@pytest.mark.slow
async def test_an_author_s_key_that_no_job_gets_does_not_open_another_entity(queue: LaunchQueue):
    await queue.create(api_key_secret="projects/p/secrets/s/versions/1")
    message, jobs = await served(queue, entity=OTHER, _wandb_api_key=AUTHORS_KEY)
    assert "is not the queue's entity" in message
    assert jobs == 0


@pytest.mark.parametrize("entity", [OTHER, None])
async def test_a_refused_item_cancels_no_sweep_but_the_queue_s_own(queue: LaunchQueue, entity: str | None):
    await queue.create()
    wandb = queue.sandbox.wandb
    wandb.hide_entity(OTHER)
    owner = entity or queue.sandbox.entity
    wandb.ensure_project(owner, "runs")
    wandb.sweeps.put(owner, "runs", "s1", "RUNNING")
    message, _ = await served(queue, **SCHEDULER, entity=owner)
    assert message
    sweep = wandb.sweeps.get(owner, "runs", "s1")
    assert sweep is not None
    assert sweep.state == "RUNNING"
