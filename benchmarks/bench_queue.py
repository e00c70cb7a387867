"""One launch queue with its block: pushed to as W&B's client does, its jobs read as Vertex AI has them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.processes import Measured, program
from benchmarks.servers import ENTITY, Servers

if TYPE_CHECKING:
    from prefect_vertex_launch.core.identity import QueueIdentity
    from prefect_vertex_launch.vertex.jobs import VertexJobs

PROJECT = "bench-project"
POOL: dict[str, Any] = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 1,
    "container_spec": {"image_uri": "${image_uri}"},
}
LOOK_SECONDS = 0.1
PUSH = """
mutation pushToRunQueueByName($entityName: String!, $projectName: String!, $queueName: String!,
                              $runSpec: JSONString!) {
  pushToRunQueueByName(input: {entityName: $entityName, projectName: $projectName, queueName: $queueName,
                               runSpec: $runSpec}) {
    runQueueItemId
  }
}"""
ITEM_STATE = """
query GetRunQueueItem($projectName: String!, $entityName: String!, $runQueue: String!, $itemId: ID!) {
  project(name: $projectName, entityName: $entityName) {
    runQueue(name: $runQueue) { runQueueItem(id: $itemId) { state } }
  }
}"""


@dataclass(eq=False)
class BenchQueue:
    """One queue; `pushed` has the moment just before each push, by item id and the wall clock."""

    name: str
    servers: Servers
    http: httpx.AsyncClient
    jobs: VertexJobs
    pushed: dict[str, float] = field(default_factory=dict[str, float])

    async def push(self, name: str) -> str:
        """Push one run through the queue protocol; return its item's id."""
        spec = {
            "entity": ENTITY,
            "project": "runs",
            "name": name,
            "docker": {"docker_image": "python"},
            "resource": "gcp-vertex",
            "overrides": {"args": ["--learning-rate", "0.1"], "run_config": {"epochs": 3}},
        }
        moment = time.time()
        data = await self._ask(PUSH, runSpec=json.dumps(spec), queueName=self.name)
        item_id = data["pushToRunQueueByName"]["runQueueItemId"]
        self.pushed[item_id] = moment
        return item_id

    @property
    def identity(self) -> QueueIdentity:
        """Which queue it is."""
        from prefect_vertex_launch.core.identity import QueueIdentity, server_name

        return QueueIdentity(server_name(self.servers.address.wandb_url), ENTITY, self.name)

    async def push_many(self, count: int) -> None:
        """Push so many runs, as fast as W&B takes them."""
        for number in range(count):
            await self.push(f"run-{number}")

    async def until_popped(self, item_id: str) -> float:
        """Wait until an item has left the queue; return when, by the wall clock."""
        while True:
            data = await self._ask(ITEM_STATE, runQueue=self.name, itemId=item_id)
            if data["project"]["runQueue"]["runQueueItem"]["state"] != "PENDING":
                return time.time()
            await asyncio.sleep(LOOK_SECONDS / 5)

    async def until_created(self, agent: Measured, *, timeout_seconds: float) -> dict[str, float]:
        """Wait until every pushed item has its job; return each job's create time by item id.

        Raises TimeoutError, and RuntimeError when the agent ends before.
        """
        async with asyncio.timeout(timeout_seconds):
            while True:
                agent.require_running()
                created = await self._create_times()
                keys = {item_id: self.identity.item_key(item_id) for item_id in self.pushed}
                missing = sum(key not in created for key in keys.values())
                if not missing:
                    return {item_id: created[key] for item_id, key in keys.items()}
                # The more are missing the longer it takes: looking must not be what costs.
                await asyncio.sleep(min(2.0, LOOK_SECONDS * missing))

    async def cancel_jobs(self) -> None:
        """Cancel every job, as somebody in the Vertex AI console could."""
        for job in await self._listed():
            await self.jobs.cancel(job.name)

    async def _create_times(self) -> dict[str, float]:
        from prefect_vertex_launch.core.labels import ITEM_LABEL

        return {
            job.labels[ITEM_LABEL]: job.create_time.timestamp()
            for job in await self._listed()
            if job.create_time is not None
        }

    async def _listed(self) -> list[Any]:
        from prefect_vertex_launch.core.labels import QUEUE_LABEL

        return list(await self.jobs.list(f'labels.{QUEUE_LABEL}="{self.identity.key}"'))

    async def _ask(self, query: str, **variables: str) -> dict[str, Any]:
        named = {"entityName": ENTITY, "projectName": "model-registry", **variables}
        response = await self.http.post("/graphql", json={"query": query, "variables": named})
        response.raise_for_status()
        return response.json()["data"]


@contextlib.asynccontextmanager
async def launch_queue(servers: Servers, name: str, *, max_jobs: int) -> AsyncIterator[BenchQueue]:
    """Create a queue at W&B and its blocks at Prefect, with the intervals a user gets by default."""
    block = await asyncio.to_thread(_block, servers, name, max_jobs)
    await block.aupsert_queue()
    await block.wandb_credentials.asave(name, overwrite=True)
    await block.gcp_credentials.asave(name, overwrite=True)
    await block.asave(name, overwrite=True)
    jobs = block.open_vertex_jobs()
    async with httpx.AsyncClient(
        base_url=servers.address.wandb_url, auth=("api", servers.address.api_key), timeout=30
    ) as http:
        try:
            yield BenchQueue(name, servers, http, jobs)
        finally:
            await jobs.aclose()


@contextlib.asynccontextmanager
async def serving(queue: BenchQueue) -> AsyncIterator[Measured]:
    """Run `vertex-launch agent` for the queue in a process of its own."""
    arguments = ("prefect_vertex_launch.cli.main", "agent", "--queue", queue.name)
    async with program(arguments, queue.servers.home / f"{queue.name}.log") as agent:
        yield agent


def _block(servers: Servers, name: str, max_jobs: int) -> Any:
    from pydantic import SecretStr

    from prefect_vertex_launch.blocks.gcp_credentials import GcpCredentials
    from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
    from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials

    address = servers.address
    return VertexLaunchQueue(
        entity=ENTITY,
        queue=name,
        project=PROJECT,
        staging_bucket="gs://bench-staging",
        wandb_credentials=WandbCredentials(api_key=SecretStr(address.api_key), base_url=address.wandb_url),
        gcp_credentials=GcpCredentials.model_validate(
            {"service_account_info": address.service_account_info(), "project": PROJECT}
        ),
        max_jobs=max_jobs,
        # Google's quotas would be all that is measured.
        calls_per_minute=60_000,
        submissions_per_minute=6_000,
        spec={"worker_pool_specs": [POOL]},
        endpoint=address.vertex_grpc_url,
    )
