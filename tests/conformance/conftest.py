"""What the tests of the sandbox drive: one W&B half for all of them, and a Vertex AI half for each.

The W&B half comes with one process that has the real wandb client in it. Every test makes its own queue,
project or run, so that sharing is safe; a client costs seconds to start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
import served_vertex
from real_wandb import API_KEY, MovableClock, WandbClient, WandbSandbox, served

from vertex_launch.sandbox.records import Records
from vertex_launch.sandbox.wandb_backend import WandbBackend


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
