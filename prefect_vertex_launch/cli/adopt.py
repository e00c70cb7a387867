"""Jobs that W&B's own launch agent left running: found on Vertex AI, and offered to the next agent.

Such a job has the label `wandb-run-id` and none of ours; its containers' environment says which run,
item and queue it is of (`LaunchProject.get_env_vars_dict` in `wandb/sdk/launch/_project_spec.py`).
The same environment holds an API key: only the variables that are named here are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import PrefectClient

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.coordination.launch_record import launch_tags
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.coordination.prefect_api import (
    load_block,
    open_prefect,
    read_flow_runs,
)
from prefect_vertex_launch.core.clock import SystemClock
from prefect_vertex_launch.core.errors import NotFound
from prefect_vertex_launch.core.identity import QueueIdentity, server_name
from prefect_vertex_launch.core.labels import ITEM_LABEL, RUN_ID_LABEL
from prefect_vertex_launch.core.states import ItemState
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.jobspec.run_spec import VERTEX_RESOURCES
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.vertex.job_watcher import ACTIVE_JOBS
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import WandbQueue

_ENTITY, _PROJECT, _RUN_ID = "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_RUN_ID"
_QUEUE, _QUEUE_ENTITY = "WANDB_LAUNCH_QUEUE_NAME", "WANDB_LAUNCH_QUEUE_ENTITY"
_ITEM = "WANDB_LAUNCH_TRACE_ID"
_SERVER = "WANDB_BASE_URL"
_NEEDED = (_ENTITY, _PROJECT, _RUN_ID, _QUEUE, _QUEUE_ENTITY, _ITEM, _SERVER)
_READ = frozenset((*_NEEDED, "WANDB_NAME"))


@dataclass(frozen=True, slots=True)
class ForeignJob:
    """One live job of W&B's agent. `item` is None for a job that does not say what it is of.

    `queue` is its run queue. `problem` says why it cannot be recognised.
    """

    name: str
    queue: QueueIdentity | None = None
    run_id: str | None = None
    item: QueueItem | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of one live job of W&B's agent: `done` in words."""

    job: str
    run: str
    item: str
    done: str


async def adopt(block_name: str, *, dry_run: bool = False) -> list[Adoption]:
    """Offer every live job that W&B's agent made for this queue to the next agent; return what was done.

    Repeating it offers nothing twice; with `dry_run` nothing is written. Raises LaunchError when
    Prefect does not answer, there is no such block, or W&B or Vertex AI cannot be asked.
    """
    async with open_prefect() as client:
        block = await load_block(block_name)
        async with contextlib.aclosing(block.open_vertex_jobs()) as jobs, block.open_wandb_queue() as wandb:
            adopter = _Adopter(client, block_name, block, wandb, dry_run=dry_run)
            return [await adopter.adopt(job) for job in await find_foreign_jobs(jobs)]


async def find_foreign_jobs(jobs: VertexJobs) -> list[ForeignJob]:
    """Return the live jobs of W&B's agent in one project and region, oldest first."""
    records = await jobs.list(f"labels.{RUN_ID_LABEL}:* AND ({ACTIVE_JOBS})")
    foreign = [record for record in records if ITEM_LABEL not in record.labels]
    found: list[ForeignJob] = []
    for record in sorted(foreign, key=lambda record: str(record.create_time)):
        with contextlib.suppress(NotFound):  # it has been deleted since it was listed
            found.append(read_foreign_job(await jobs.describe(record.name)))
    return found


def read_foreign_job(job: CustomJob) -> ForeignJob:
    """Return which run, item and queue a job of W&B's agent says that it is of."""
    variables, image_uri = _launch_of(job)
    if missing := [name for name in _NEEDED if not variables.get(name)]:
        return ForeignJob(job.name, problem=f"its environment does not say {', '.join(missing)}")
    run_id = variables[_RUN_ID]
    labelled = job.labels[RUN_ID_LABEL]
    if labelled != run_id:
        return ForeignJob(job.name, problem=f"its label says run {labelled}, its environment run {run_id}")
    payload: dict[str, Any] = {
        "entity": variables[_ENTITY],
        "project": variables[_PROJECT],
        "run_id": run_id,
        "name": variables.get("WANDB_NAME") or job.display_name,
        "resource": VERTEX_RESOURCES[0],
        "docker": {"docker_image": image_uri},
    }
    item = QueueItem(item_id=variables[_ITEM], payload=payload, job_name=job.name)
    queue = QueueIdentity(server_name(variables[_SERVER]), variables[_QUEUE_ENTITY], variables[_QUEUE])
    return ForeignJob(job.name, queue, run_id, item)


def _launch_of(job: CustomJob) -> tuple[Mapping[str, str], str]:
    """Return the launch's variables and the image of the first worker pool that has any."""
    for pool in job.job_spec.worker_pool_specs:
        task = pool.container_spec
        variables = {variable.name: variable.value for variable in task.env if variable.name in _READ}
        if variables:
            return variables, task.image_uri
    return {}, ""


@dataclass(frozen=True, slots=True)
class _Adopter:
    client: PrefectClient
    block_name: str
    block: VertexLaunchQueue
    wandb: WandbQueue
    dry_run: bool

    async def adopt(self, job: ForeignJob) -> Adoption:
        number = job.name.rsplit("/", 1)[-1]
        if job.item is None:
            return Adoption(number, "-", "-", f"not recognised, left alone: {job.problem}")
        return Adoption(number, str(job.run_id), job.item.item_id, await self._adopt(job, job.item))

    async def _adopt(self, job: ForeignJob, item: QueueItem) -> str:
        if job.queue != self.block.identity:
            return f"left alone: it is of the queue {job.queue}"
        if await self._has_launch(item):
            return "adopted already"
        if why := await self._why_not(item.item_id, job.run_id):
            return f"left alone: {why}"
        if self.dry_run:
            return "would be adopted"
        if await self._runs().offer(item.request()) is None:
            return "adopted already"
        return "adopted: the next agent carries it on, or the running one within a minute"

    async def _has_launch(self, item: QueueItem) -> bool:
        tags = launch_tags(self.block.identity, item.item_id, item.run)
        return bool(await read_flow_runs(self.client, tags=tags, most=1))

    async def _why_not(self, item_id: str, run_id: str | None) -> str:
        """Return why W&B's state of the item forbids it; an empty text if it does not.

        An agent that is stopped fails the items of the jobs whose runs have not called wandb.init
        yet, and leaves the jobs running: they are adopted, too.
        """
        try:
            item = await self.wandb.read_item(item_id)
        except NotFound:
            return "its item is no longer in the queue"
        if item.state not in {ItemState.CLAIMED, ItemState.FAILED}:
            return f"its item is {item.state.value} and would be launched once more"
        if item.run_id not in {None, run_id}:
            return f"its item belongs to run {item.run_id}"
        return ""

    def _runs(self) -> LaunchStore:
        return LaunchStore(
            self.client,
            block_name=self.block_name,
            queue=self.block.identity,
            owner_id=uuid4(),
            clock=SystemClock(),
        )
