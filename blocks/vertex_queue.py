"""A W&B Launch queue that runs on Vertex AI, as a Prefect block."""

from __future__ import annotations

import asyncio
import os
from typing import Any, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, field_validator, model_validator

from blocks.field_names import refuse_unknown_fields
from blocks.gcp_credentials import GcpCredentials
from blocks.wandb_credentials import LOGO_URL, WandbCredentials
from vertex_launch.errors import InvalidQueueConfig, NotFound, Problem
from vertex_launch.queue_config import QueueDefaults, parse_queue_config
from vertex_launch.vertex_jobs import VertexJobs
from vertex_launch.wandb_queue import WandbQueue

RESOURCE: Literal["gcp-vertex"] = "gcp-vertex"
WITH_PRIORITIES: Literal["V0"] = "V0"
DOCUMENTATION_URL = "https://docs.wandb.ai/guides/launch/setup-vertex"
_EXAMPLE_SPEC = {
    "worker_pool_specs": [
        {
            "machine_spec": {"machine_type": "n1-standard-8"},
            "replica_count": 1,
            "container_spec": {"image_uri": "${image_uri}"},
        }
    ]
}


def _may_come_with_the_run(problem: Problem) -> bool:
    required = {"block.spec.worker_pool_specs", "block.spec.staging_bucket"}
    return problem.what == "missing" and problem.where in required


class VertexLaunchQueue(Block):
    """A W&B Launch queue whose runs become Vertex AI custom jobs.

    Holds what the flows need to serve the queue: where it is, where its jobs go, the credentials for
    both, how many jobs may run at once, and the configuration for runs that bring none along.

    Attributes:
        entity: W&B entity (team or user) that owns the queue.
        queue: Name of the run queue.
        project: Google Cloud project of the jobs.
        location: Region of the jobs.

    Example:
        ```python
        from blocks.vertex_queue import VertexLaunchQueue

        vertex_launch_queue = VertexLaunchQueue.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Vertex Launch Queue"
    _block_type_slug: ClassVar[str | None] = "vertex-launch-queue"
    _logo_url: ClassVar[Any] = LOGO_URL
    _documentation_url: ClassVar[Any] = DOCUMENTATION_URL

    model_config = ConfigDict(validate_assignment=True)

    entity: str = Field(
        title="W&B entity",
        description="Team or user that owns the queue.",
        min_length=1,
        examples=["my-team"],
    )
    queue: str = Field(
        title="Queue",
        description="Name of the run queue at W&B.",
        min_length=1,
        max_length=64,
        examples=["vertex-a100"],
    )
    project: str = Field(
        title="Google Cloud project",
        description="Project in which the jobs run.",
        min_length=1,
        examples=["my-project"],
    )
    location: str = Field(
        default="us-central1",
        title="Region",
        description="Region in which the jobs run.",
        min_length=1,
        examples=["us-central1", "europe-west4"],
    )
    staging_bucket: str | None = Field(
        default=None,
        title="Staging bucket",
        description="Bucket for the jobs' output, where the queue itself names none.",
        examples=["gs://my-bucket"],
    )
    wandb_credentials: WandbCredentials = Field(title="W&B credentials")
    gcp_credentials: GcpCredentials = Field(title="Google Cloud credentials")
    max_jobs: int = Field(
        default=1,
        title="Jobs at once",
        description="How many jobs of this queue may be under way at once; -1 for no limit.",
        ge=-1,
    )
    spec: dict[str, Any] = Field(
        default_factory=dict,
        title="spec",
        description="Named arguments of aiplatform.CustomJob, in snake_case; what a run brings along wins.",
        examples=[_EXAMPLE_SPEC],
    )
    run: dict[str, Any] = Field(
        default_factory=dict,
        title="run",
        description="Named arguments of CustomJob.run, in snake_case; what a run brings along wins.",
        examples=[{"timeout": 86400, "scheduling_strategy": "SPOT"}],
    )
    allowed_macros: list[str] = Field(
        default_factory=list,
        title="Allowed macros",
        description="Environment variables of the worker that the queue may use as ${NAME}; no others.",
        examples=[["TEAM_BUCKET"]],
    )
    poll_seconds: float = Field(
        default=2.0, title="Queue interval", description="Seconds between two looks at an idle queue.", gt=0
    )
    watch_seconds: float = Field(
        default=10.0,
        title="Job interval",
        description="Seconds between two looks at the live jobs; one look serves up to 100 of them.",
        gt=0,
    )
    call_timeout_seconds: float = Field(
        default=30.0, title="Call timeout", description="Seconds that one remote call may take.", gt=0
    )
    create_timeout_seconds: float = Field(
        default=60.0,
        title="Submission timeout",
        description="Seconds that the creation of a job may take.",
        gt=0,
    )
    stop_grace_seconds: float = Field(
        default=60.0,
        title="Stop grace",
        description="Seconds a run that was stopped at W&B gets to end by itself.",
        ge=0,
    )
    init_grace_seconds: float = Field(
        default=60.0,
        title="Init grace",
        description="Seconds after a job's end in which its run must have shown up at W&B.",
        ge=0,
    )
    endpoint: str | None = Field(
        default=None,
        title="Vertex AI endpoint",
        description="Another endpoint than the region's own: https://host, or grpc://host:port in the clear.",
        examples=["grpc://127.0.0.1:8085"],
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_fields(cls, values: Any) -> Any:
        return refuse_unknown_fields(cls.__name__, cls.model_fields, values)

    @field_validator("max_jobs")
    @classmethod
    def _some_jobs(cls, value: int) -> int:
        if value == 0:
            raise ValueError("with 0 jobs at once nothing would ever run; use -1 for no limit")
        return value

    @field_validator("endpoint")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value and not value.startswith(("https://", "grpc://")):
            raise ValueError(f"{value!r} is neither https://host nor grpc://host:port")
        return value or None

    @model_validator(mode="after")
    def _config_is_valid(self) -> VertexLaunchQueue:
        """Check `spec` and `run` when they are saved and not only when a run needs them.

        They may be incomplete: a run may bring along what is missing.
        """
        try:
            parse_queue_config({"spec": self.spec, "run": self.run}, defaults=self.defaults(), where="block")
        except InvalidQueueConfig as error:
            wrong = [problem for problem in error.problems if not _may_come_with_the_run(problem)]
            if wrong:
                raise ValueError(str(InvalidQueueConfig(wrong))) from error
        return self

    @property
    def limit_name(self) -> str:
        """The global concurrency limit that stands for `max_jobs`."""
        return f"vertex-launch:{self.entity}:{self.queue}"

    def defaults(self) -> QueueDefaults:
        """Return the configuration for what a run does not bring along."""
        return QueueDefaults(spec=self.spec, run=self.run, staging_bucket=self.staging_bucket)

    def macros(self) -> dict[str, str | None]:
        """Return the allowed environment variables; None for those that are not set here."""
        return {name: os.environ.get(name) for name in self.allowed_macros}

    def open_wandb_queue(self) -> WandbQueue:
        """Return a client of the queue; nothing is sent before its first call."""
        return WandbQueue(
            self.wandb_credentials.endpoint(),
            entity=self.entity,
            queue=self.queue,
            timeout_seconds=self.call_timeout_seconds,
        )

    def open_vertex_jobs(self) -> VertexJobs:
        """Return a client of the jobs' project and region; nothing is sent before its first call."""
        plain = self.endpoint is not None and self.endpoint.startswith("grpc://")
        return VertexJobs(
            project=self.project,
            location=self.location,
            credentials=None if plain else self.gcp_credentials.get_credentials_from_service_account(),
            endpoint=self.endpoint,
            timeout_seconds=self.call_timeout_seconds,
            create_timeout_seconds=self.create_timeout_seconds,
        )

    async def aupsert_queue(self, *, prioritize: bool | None = None) -> None:
        """Create the queue at W&B, or set its configuration to this block's `spec` and `run`.

        `prioritize` turns priorities on or off; None leaves them as they are. Repeating it changes
        nothing. Raises InvalidQueueConfig when the block holds no usable configuration,
        AuthenticationFailed when W&B does not accept the key, and wandb's own errors.
        """
        config = parse_queue_config(
            {"spec": self.spec, "run": self.run}, defaults=self.defaults(), where=f"queue {self.queue}"
        )
        if prioritize is None:
            prioritize = await self._has_priorities()
        await asyncio.to_thread(self._upsert_queue, {"spec": config.spec, "run": config.run}, prioritize)

    def upsert_queue(self, *, prioritize: bool | None = None) -> None:
        """Create or update the queue at W&B, as `aupsert_queue` does, where no event loop runs."""
        asyncio.run(self.aupsert_queue(prioritize=prioritize))

    def _upsert_queue(self, config: dict[str, Any], prioritize: bool) -> None:
        self.wandb_credentials.get_client().upsert_run_queue(
            name=self.queue,
            resource_config=config,
            resource_type=RESOURCE,
            entity=self.entity,
            prioritization_mode=WITH_PRIORITIES if prioritize else None,
        )

    async def _has_priorities(self) -> bool:
        async with self.open_wandb_queue() as wandb:
            try:
                return (await wandb.find_queue()).prioritization_mode == WITH_PRIORITIES
            except NotFound:
                return False

    async def aread_queue_config(self) -> dict[str, Any]:
        """Return the queue's configuration as W&B has it. Raises NotFound for no such queue."""
        async with self.open_wandb_queue() as wandb:
            found = await wandb.find_queue()
        kept: Any = found.config
        arguments = kept.get("resource_args") if isinstance(kept, dict) else None
        return dict((arguments or {}).get(found.resource) or {})

    def read_queue_config(self) -> dict[str, Any]:
        """Return the queue's configuration as W&B has it. Raises NotFound for no such queue."""
        return asyncio.run(self.aread_queue_config())
