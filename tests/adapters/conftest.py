"""Our queue client, and a served W&B half of the sandbox that it speaks to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.wandb.queue import WandbQueue
from tests.adapters.queue_client import CONFIG, open_queue
from tests.sandbox.real_wandb import API_KEY, MovableClock, served


@pytest.fixture
async def backend() -> AsyncIterator[WandbBackend]:
    """A served W&B half of the test's own, with the queue `vertex` and the project `p`."""
    backend = WandbBackend(Records(), entity="team", api_key=API_KEY, clock=MovableClock())
    config = backend.queues.create_config("team", "gcp-vertex", json.dumps(CONFIG), None)
    backend.queues.create(
        "team",
        "model-registry",
        "vertex",
        created_by="ann",
        prioritization_mode="V0",
        resource_config_id=config.id,
    )
    backend.ensure_project("team", "p")
    async with served(backend):
        yield backend


@pytest.fixture
async def queue(backend: WandbBackend) -> AsyncIterator[WandbQueue]:
    async with open_queue(backend.base_url) as queue:
        yield queue
