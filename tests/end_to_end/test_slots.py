"""Slots under the limits of a real Prefect server."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from prefect_vertex_launch.coordination.launch_record import lease_of
from prefect_vertex_launch.coordination.slots import QueueSlots
from prefect_vertex_launch.core.clock import SystemClock
from prefect_vertex_launch.flows.launch import launch
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer


@pytest.mark.parametrize("max_jobs", [1, 2])
async def test_a_slot_that_a_restarted_server_only_counts_is_kept_and_gets_a_lease_again_if_there_is_room(
    sandbox: Sandbox, prefect_api: PrefectServer, monkeypatch: pytest.MonkeyPatch, max_jobs: int
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.coordination.slots.RENEWAL_SECONDS", 0.0)
    block = await LaunchQueue(sandbox, max_jobs=max_jobs).create()
    async with get_client() as client:
        slots, others = (
            QueueSlots(block, client, holder_id=uuid4(), clock=SystemClock()).jobs for _ in range(2)
        )
        await slots.ensure_limit()
        slot = await slots.try_take()
        assert slot is not None
        flow_run = await client.create_flow_run(launch, parameters={"queue": "q", "item": {"item_id": "1"}})
        slots.give(slot, flow_run.id, slots.labels_of(slot))
        assert slot.lease_id is not None
        # What a server with its leases in memory knows after a restart: one slot is taken.
        await client.release_concurrency_slots_with_lease(lease_id=slot.lease_id)
        await client.increment_concurrency_slots([block.identity.limit_name], slots=1, mode="concurrency")

        assert await slots.settle()
        await slots.mend()

        assert slot.is_held
        limit = await client.read_global_concurrency_limit_by_name(block.identity.limit_name)
        assert limit.active_slots == 1
        noted = lease_of((await client.read_flow_run(flow_run.id)).labels)
        assert await others.renew_of_another(noted) == (max_jobs > 1)
        assert not await others.renew_of_another(None)
        await slots.release(slot)
        limit = await client.read_global_concurrency_limit_by_name(block.identity.limit_name)
        assert limit.active_slots == 0
