"""A sandbox that lets things go wrong, and clients of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from random import Random
from typing import Any

import httpx

from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.sandbox.faults.registry import Fault
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import PoppedItem, WandbQueue
from tests.adapters.queue_client import NoWait, open_queue
from tests.eventually import HANG_SECONDS
from tests.sandbox.served_vertex import job
from tests.sandbox_access import KnownEverywhere, jobs_in

# How long an answer is waited for that never comes. Until then the request has to be heard.
BRIEF_SECONDS = 1.0


class Scene:
    """The sandbox, whose jobs stay QUEUED, and a queue, jobs and HTTP client of one test.

    What is never answered is to be asked by clients that are `hurried`.
    """

    def __init__(self, sandbox: Sandbox, queue: WandbQueue, jobs: VertexJobs, http: httpx.AsyncClient):
        self.sandbox, self.queue, self.jobs, self.http = sandbox, queue, jobs, http

    def hurried(self) -> AbstractAsyncContextManager[Scene]:
        return clients(self.sandbox, self.queue.queue, timeout_seconds=BRIEF_SECONDS)

    def patient_unless(self, is_silent: bool) -> AbstractAsyncContextManager[Scene]:
        return self.hurried() if is_silent else nullcontext(self)

    async def on(self, server: str, what: str, operation: str = "any", **more: Any) -> Any:
        return await self.sandbox.faults.add(
            Fault.model_validate({"server": server, "what": what, "operation": operation, **more})
        )

    def push(self, **spec: Any) -> str:
        text = json.dumps({"entity": "team", "project": "p", **spec})
        return self.sandbox.wandb.push_raw(self.queue.queue, text)

    async def pop(self) -> PoppedItem:
        popped = await self.queue.pop(None)
        assert popped is not None
        return popped

    async def create(self, name: str = "job", **labels: str) -> JobRecord:
        return await self.jobs.create(job(name=name, labels=labels))

    async def listed(self, label: str) -> list[str]:
        return [record.display_name for record in await self.jobs.list(f'labels.test="{label}"')]

    def state_of(self, item_id: str) -> str:
        item = self.sandbox.wandb.item(item_id)
        assert item is not None
        return item.state


@asynccontextmanager
async def clients(
    sandbox: Sandbox, name: str, *, timeout_seconds: float = HANG_SECONDS
) -> AsyncIterator[Scene]:
    jobs = jobs_in(
        sandbox, clock=NoWait(), random=Random(1),
        timeout_seconds=timeout_seconds, create_timeout_seconds=timeout_seconds,
    )  # fmt: skip
    queue = open_queue(sandbox.wandb_url, key=sandbox.api_key, name=name, timeout_seconds=timeout_seconds)
    async with queue, httpx.AsyncClient(timeout=HANG_SECONDS, auth=KnownEverywhere(sandbox)) as http:
        yield Scene(sandbox, queue, jobs, http)
    await jobs.aclose()
