"""Put a run on a W&B Launch queue: the launch form of the Prefect UI."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from prefect import State, flow, task
from prefect.artifacts import acreate_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field, model_validator

from prefect_vertex_launch.blocks.field_names import refuse_unknown_fields
from prefect_vertex_launch.blocks.vertex_queue import WITH_PRIORITIES, VertexLaunchQueue
from prefect_vertex_launch.coordination.prefect_api import load_block
from prefect_vertex_launch.core.clock import SystemClock
from prefect_vertex_launch.core.errors import LaunchError, Problem, Refused, Transient
from prefect_vertex_launch.core.states import ItemState
from prefect_vertex_launch.launch.notify import run_url
from prefect_vertex_launch.launch.run_log import run_log
from prefect_vertex_launch.wandb.push import push
from prefect_vertex_launch.wandb.queue import RunPath, WandbQueue

FINAL_RUN_STATES = frozenset({"finished", "failed", "crashed", "killed", "preempted"})


class Priority(StrEnum):
    """The order in which a queue with priorities hands out its items."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


# The numbers W&B's own command line sends (wandb/cli: critical 0 … low 3).
_PRIORITY_NUMBER = {Priority.CRITICAL: 0, Priority.HIGH: 1, Priority.MEDIUM: 2, Priority.LOW: 3}


def _number_fields(schema: dict[str, Any]) -> None:
    """Give every field its place in the form: a Prefect server on PostgreSQL keeps no order of keys."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


class LaunchForm(BaseModel):
    """What to run, and with what."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_number_fields)

    project: str = Field(
        title="W&B project", description="The project that the run belongs to.", min_length=1
    )
    image: str | None = Field(
        default=None, title="Image", description="Container image to run. Give either an image or a job."
    )
    job: str | None = Field(
        default=None, title="Job", description="W&B job to run, as entity/project/name:alias."
    )
    name: str | None = Field(default=None, title="Run name", description="The run's display name.")
    entry_point: list[str] = Field(
        default=[], title="Entry point", description="Replaces the container's command."
    )
    args: list[str] = Field(default=[], title="Arguments", description="Arguments of the entry point.")
    run_config: dict[str, Any] = Field(
        default={}, title="Run config", description="Becomes wandb.config in the run."
    )
    resource_args: dict[str, Any] = Field(
        default={},
        title="Resource overrides",
        description="`spec` and `run` of this run alone, instead of the queue's.",
    )
    template_variables: dict[str, Any] = Field(
        default={}, title="Template variables", description="Values for the queue's template variables."
    )
    priority: Priority | None = Field(
        default=None, title="Priority", description="Only for queues that have priorities."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_fields(cls, values: Any) -> Any:
        return refuse_unknown_fields("launch", cls.model_fields, values)

    @model_validator(mode="after")
    def _one_source(self) -> LaunchForm:
        if self.image and self.job:
            raise ValueError(
                f"both an image ({self.image}) and a job ({self.job}) are given, but a launch runs one "
                "of them; leave one empty"
            )
        if not self.image and not self.job:
            raise ValueError("neither an image nor a job is given; fill in one of them")
        return self

    def job_path(self, entity: str) -> tuple[str, str, str] | None:
        """Return entity, project and name:alias of the job, if it is one; a short name is the run's home's.

        Raises Refused for what is no name of a job.
        """
        if not self.job:
            return None
        parts = self.job.split("/")
        path = [*[entity, self.project][: max(0, 3 - len(parts))], *parts]
        if len(path) != 3 or not all(path):
            raise Refused(
                Problem(
                    where="launch.job",
                    what=f"{self.job!r} does not name a job",
                    fix="Write entity/project/name:alias.",
                )
            )
        return path[0], path[1], path[2]

    def as_arguments(self, *, entity: str, queue: str) -> dict[str, Any]:
        """Return the arguments for wandb's `launch_add`. Raises Refused for what is no name of a job."""
        job = self.job_path(entity)
        overrides = {
            key: value
            for key, value in (
                ("args", self.args), ("entry_point", self.entry_point), ("run_config", self.run_config)
            )
            if value
        }  # fmt: skip
        return {
            "entity": entity,
            "project": self.project,
            "queue_name": queue,
            "docker_image": self.image or None,
            "job": "/".join(job) if job else None,
            "name": self.name or None,
            "config": {"overrides": overrides} if overrides else None,
            "resource": "gcp-vertex" if self.resource_args else None,
            "resource_args": {"gcp-vertex": self.resource_args} if self.resource_args else None,
            "template_variables": self.template_variables or None,
            "priority": None if self.priority is None else _PRIORITY_NUMBER[self.priority],
        }


# PREFECT_TASKS_DEFAULT_RETRIES would push a run a second time that is on the queue already.
@task(name="push", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def push_run(queue: str, form: dict[str, Any]) -> str:
    """Push the run through wandb's public API; return the run queue item's id.

    Raises NotFound, AuthenticationFailed or Refused; then nothing was pushed.
    """
    block = await load_block(queue)
    launch = LaunchForm.model_validate(form)
    arguments = launch.as_arguments(entity=block.entity, queue=block.queue)
    await _check(block, launch)
    endpoint = block.wandb_credentials.endpoint()
    # Dying here may leave the run on the queue; nobody pushes it a second time.
    return await push(arguments, base_url=endpoint.base_url, api_key=endpoint.api_key)


async def _check(block: VertexLaunchQueue, launch: LaunchForm) -> None:
    """Refuse what `launch_add` would refuse without a reason, or only after it has pushed the run."""
    async with block.open_wandb_queue() as wandb:
        found = await wandb.find_queue()
        if launch.priority is not None and found.prioritization_mode != WITH_PRIORITIES:
            raise Refused(
                Problem(
                    where="launch.priority",
                    what=f"the queue {block.entity}/{block.queue} has no priorities",
                    fix="Leave it empty, or turn priorities on in the queue's settings at W&B.",
                )
            )
        if job := launch.job_path(block.entity):
            await wandb.read_job(*job)


@task(name="wait for the run", cache_policy=NO_CACHE, persist_result=False)
async def wait_for_run(queue: str, project: str, item_id: str) -> str:
    """Wait until the item has failed or its run has ended; return the run's last state."""
    block = await load_block(queue)
    clock = SystemClock()
    async with block.open_wandb_queue() as wandb:
        while True:
            try:
                state = await _state_of(wandb, block.entity, project, item_id)
            except Transient as error:
                run_log().warning("Still waiting; W&B could not be asked: %s", error)
                state = None
            if state in FINAL_RUN_STATES:
                return state
            await clock.sleep(block.poll_seconds)


async def _state_of(wandb: WandbQueue, entity: str, project: str, item_id: str) -> str | None:
    item = await wandb.read_item(item_id)
    if item.state is ItemState.FAILED:
        return "failed"
    if item.run_id is None:
        return None
    return await wandb.read_run_state(entity, project, item.run_id)


# PREFECT_FLOWS_DEFAULT_RETRIES would push the run again, if the first one has failed.
@flow(name="enqueue", flow_run_name="enqueue on {queue}", retries=0, persist_result=False, log_prints=False)
async def enqueue(queue: str, launch: LaunchForm, wait: bool = False) -> State[Any]:
    """Put a run on a W&B Launch queue.

    Args:
        queue: Name of the VertexLaunchQueue block.
        launch: What to run.
        wait: Stay until the run has ended, and end as it did.
    """
    try:
        item_id = await push_run(queue, launch.model_dump(mode="json"))
        run_log().info("Queued as item %s", item_id)
        if not wait:
            return Completed(message=f"Queued as item {item_id}.")
        return await _see_through(queue, launch, item_id)
    except LaunchError as error:
        return Failed(message=str(error))


async def _see_through(queue: str, launch: LaunchForm, item_id: str) -> State[Any]:
    state = await wait_for_run(queue, launch.project, item_id)
    block = await load_block(queue)
    async with block.open_wandb_queue() as wandb:
        item = await wandb.read_item(item_id)
    if item.run_id is not None:
        run = RunPath(entity=block.entity, project=launch.project, run_id=item.run_id)
        await acreate_link_artifact(
            link=run_url(block.wandb_credentials.base_url, run), link_text=f"W&B run {item.run_id}"
        )
    message = f"Item {item_id}: its run is {state}."
    return Completed(message=message) if state == "finished" else Failed(message=message)
