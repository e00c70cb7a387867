"""What the tests of the sandbox drive: one W&B half for all of them, and a Vertex AI half for each.

The W&B half comes with one process that has the real wandb client in it. Every test makes its own queue,
project or run, so that sharing is safe; a client costs seconds to start. The tests of faults have a whole
sandbox for each file.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest_asyncio

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from tests.adapters.queue_client import CONFIG
from tests.sandbox import served_vertex
from tests.sandbox.fault_scene import Scene, clients
from tests.sandbox.real_wandb import API_KEY, MovableClock, WandbClient, WandbSandbox, served

QUEUE_NUMBERS = count()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def wandb_sandbox(tmp_path_factory) -> AsyncIterator[WandbSandbox]:
    clock = MovableClock()
    backend = WandbBackend(Records(), entity="team", api_key=API_KEY, clock=clock)
    async with served(backend):
        yield WandbSandbox(backend, clock, tmp_path_factory.mktemp("wandb"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def wandb_client(wandb_sandbox: WandbSandbox) -> AsyncIterator[WandbClient]:
    client = await WandbClient.start(wandb_sandbox)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def vertex(tmp_path: Path) -> AsyncIterator[served_vertex.Served]:
    async with served_vertex.served(tmp_path) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def faulty_sandbox() -> AsyncIterator[Sandbox]:
    """A sandbox with switches for faults, whose jobs stay QUEUED."""
    async with Sandbox(entity="team", queued_seconds=3600, pending_seconds=0, faults_port=0) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def scene(faulty_sandbox: Sandbox) -> AsyncIterator[Scene]:
    """The sandbox for one test, with a queue of the test's own; its faults end with it."""
    name = f"queue-{next(QUEUE_NUMBERS)}"
    queues = faulty_sandbox.wandb.queues
    config = queues.create_config("team", "gcp-vertex", json.dumps(CONFIG), None)
    queues.create("team", "model-registry", name, created_by="ann", resource_config_id=config.id)
    async with clients(faulty_sandbox, name) as scene:
        yield scene
    await faulty_sandbox.faults.clear()
