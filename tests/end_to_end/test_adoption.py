"""What whoever adopts a launch knows of it, by its flow run at a real Prefect server."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from prefect_vertex_launch.agent.adoption import Adoption
from prefect_vertex_launch.agent.supervisor import Supervisor
from prefect_vertex_launch.coordination.launch_record import (
    CANCELLED,
    MAY_HAVE_DUPLICATE,
    parents_labels,
    parents_of,
)
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.coordination.slots import QueueSlots
from prefect_vertex_launch.core.states import Requester
from prefect_vertex_launch.flows.launch import launch as launch_flow
from prefect_vertex_launch.flows.launch_engine import start_launch
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.queue_context import open_queue
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer

ELSEWHERE = "projects/p/locations/asia-east1"


@pytest.mark.parametrize("flags", [[], [MAY_HAVE_DUPLICATE], [CANCELLED], [MAY_HAVE_DUPLICATE, CANCELLED]])
async def test_what_must_outlive_a_process_is_known_to_whoever_adopts_the_launch(
    sandbox: Sandbox, prefect_api: PrefectServer, flags: list[str]
) -> None:
    queue, owner_id = LaunchQueue(sandbox), uuid4()
    block = await queue.create()
    item = QueueItem(item_id="1", payload={})
    async with get_client() as client, open_queue(queue.name) as context:
        store = LaunchStore(
            client,
            block_name=queue.name,
            queue=block.identity,
            owner_id=owner_id,
            clock=context.clock,
        )
        supervisor = Supervisor(context, store, wake=asyncio.Event(), start=start_launch)
        slots = QueueSlots(block, client, holder_id=owner_id, clock=context.clock)
        made = await client.create_flow_run(launch_flow, parameters={"queue": queue.name})
        await client.update_flow_run_labels(made.id, {**parents_labels([ELSEWHERE])})
        for flag in flags:
            await context.page.mark(made.id, flag)

        found = await client.read_flow_run(made.id)
        adopted = Adoption(context, store, slots, supervisor).launch_of(item, found, None)

    assert parents_of(found.labels) == adopted.parents == {ELSEWHERE}
    assert adopted.may_have_duplicate == (MAY_HAVE_DUPLICATE in flags)
    assert (adopted.stop is not None and adopted.stop.who is Requester.PREFECT) == (CANCELLED in flags)
