"""A locked queue: what its block does not allow is refused before there is a job."""

from __future__ import annotations

from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer


async def test_what_the_block_does_not_allow_is_refused_and_what_it_allows_runs(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    queue = LaunchQueue(sandbox)
    await queue.create(secure_mode=True, allowed_images=["sandbox/*"])
    allowed = queue.push("sandbox/no-wandb")
    other_image = queue.push("python")
    other_entry_point = queue.push("sandbox/no-wandb", overrides={"entry_point": ["sh", "-c", "id"]})

    await agent(queues=[queue.name], drain=True, return_state=True)

    assert "no-run" in queue.item(allowed).error["message"]
    for item_id, lock in ((other_image, "Allowed images"), (other_entry_point, "Allowed entry points")):
        assert lock in queue.item(item_id).error["message"]
    assert len(await queue.jobs()) == 1
