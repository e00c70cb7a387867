"""A queue on a sandbox, its blocks on a Prefect server, and what a test wants to know of both."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefect_gcp.credentials import GcpCredentials

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.core.identity import QueueIdentity, server_name
from prefect_vertex_launch.core.labels import ITEM_LABEL
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.vertex.jobs import VertexJobs

PROJECT = "test-project"
LOCATIONS = ("us-central1", "europe-west4")
POOL: dict[str, Any] = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 1,
    "container_spec": {"image_uri": "${image_uri}"},
}


def until_there(path: Path) -> tuple[str, str]:
    """The arguments of a job that runs until a file is there."""
    return "-c", f"import pathlib, time\nwhile not pathlib.Path({str(path)!r}).exists(): time.sleep(0.05)"


_registered: dict[tuple[str | None, type[Block]], dict[str, UUID | None]] = {}


async def _save(block: Block, name: str, *, is_new: bool) -> None:
    """Save a block. With a server, the type of a new one is registered only once."""
    kind = type(block)
    ids = _registered.get((PREFECT_API_URL.value(), kind))
    if not is_new or ids is None:
        await block.asave(name, overwrite=True)
        # The class itself has those of the server that it was registered with last.
        ids = {"block_type_id": kind._block_type_id, "block_schema_id": kind._block_schema_id}
        _registered[PREFECT_API_URL.value(), kind] = ids
        return
    document = block._to_block_document(name=name, include_secrets=True, **ids)
    kept = document.model_dump(include={"name", "data", "block_schema_id", "block_type_id"})
    async with get_client() as client:
        saved = await client.create_block_document(BlockDocumentCreate(**kept))
    block._block_document_name, block._block_document_id = saved.name, saved.id


@dataclass
class LaunchQueue:
    """One queue with its block; every test gets names of its own on the shared Prefect server.

    `queue` is the queue's name at W&B, where it is not that of its block.
    """

    sandbox: Sandbox
    max_jobs: int = 5
    name: str = field(default_factory=lambda: f"q-{uuid4().hex[:8]}")
    queue: str = ""
    identity: QueueIdentity = field(init=False)
    _vertex_jobs: list[VertexJobs] = field(default_factory=list[VertexJobs], repr=False)

    def __post_init__(self) -> None:
        self.queue = self.queue or self.name
        self.identity = QueueIdentity(server_name(self.sandbox.wandb_url), self.sandbox.entity, self.queue)

    async def create(self, **changes: Any) -> VertexLaunchQueue:
        settings: dict[str, Any] = {
            "entity": self.sandbox.entity,
            "queue": self.queue,
            "project": PROJECT,
            "staging_bucket": "gs://bucket",
            "spec": {"worker_pool_specs": [POOL]},
            "max_jobs": self.max_jobs,
            "poll_seconds": 0.5,
            "watch_seconds": 0.2,
            # Tests look more often than Google would allow.
            "calls_per_minute": 60_000,
            "submissions_per_minute": 6_000,
            "stop_grace_seconds": 0.0,
            "init_grace_seconds": 0.0,
            "endpoint": self.sandbox.vertex_grpc_url,
        }
        wandb = WandbCredentials(api_key=self.sandbox.api_key, base_url=self.sandbox.wandb_url)
        is_new = not self._vertex_jobs
        await _save(wandb, self.name, is_new=is_new)
        account = self.sandbox.service_account_info(PROJECT)
        gcp = GcpCredentials(service_account_info=account, project=PROJECT)
        await _save(gcp, self.name, is_new=is_new)
        block = VertexLaunchQueue(
            **{"wandb_credentials": wandb, "gcp_credentials": gcp, **settings, **changes}
        )
        await _save(block, self.name, is_new=is_new)
        await block.aupsert_queue()
        self._vertex_jobs = [block.open_vertex_jobs(location) for location in LOCATIONS]
        return block

    def push(self, image: str = "python", *args: str, **changes: Any) -> str:
        """Put an item on the queue as W&B stores it; return its id."""
        spec: dict[str, Any] = {
            "entity": self.sandbox.entity,
            "project": "runs",
            "docker": {"docker_image": image},
            "resource": "gcp-vertex",
            "overrides": {"args": list(args)},
            **changes,
        }
        return self.push_text(json.dumps({key: value for key, value in spec.items() if value is not None}))

    def push_text(self, text: str) -> str:
        return self.sandbox.wandb.push_raw(self.queue, text)

    async def launches(self) -> dict[str, FlowRun]:
        """The launch flow runs of this queue by item id."""
        async with get_client() as client:
            flow_runs = await client.read_flow_runs(
                flow_filter=FlowFilter.model_validate({"name": {"any_": ["launch"]}}),
                flow_run_filter=FlowRunFilter.model_validate({"tags": {"all_": [self.identity.tag]}}),
            )
        return {flow_run.parameters["item"]["item_id"]: flow_run for flow_run in flow_runs}

    async def jobs_of(self, item_id: str) -> list[JobRecord]:
        key = self.identity.item_key(item_id)
        return [job for job in await self.jobs() if job.labels.get(ITEM_LABEL) == key]

    def stop_agents(self) -> None:
        """Ask every agent to end, as the button at W&B does."""
        for registered in self.sandbox.wandb.agents.all():
            self.sandbox.wandb.stop_polling(registered.id)

    def item(self, item_id: str) -> Any:
        found = self.sandbox.wandb.item(item_id)
        assert found is not None
        return found

    async def most_at_once(self) -> int:
        """How many jobs were live at once at most, by the times that Vertex AI has of them."""
        starts_and_ends: list[tuple[datetime, int]] = []
        for job in await self.jobs():
            assert job.create_time is not None
            assert job.end_time is not None
            starts_and_ends += [(job.create_time, 1), (job.end_time, -1)]
        return max(itertools.accumulate(change for _, change in sorted(starts_and_ends)))

    async def jobs(self) -> list[JobRecord]:
        """Every job of the block's project in the regions that the tests use."""
        return [job for vertex_jobs in self._vertex_jobs for job in await vertex_jobs.list("")]
