"""A W&B Launch queue that runs on Vertex AI, as a Prefect block."""

from __future__ import annotations

import asyncio
import copy
import os
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, field_validator, model_validator

from prefect_vertex_launch.blocks.field_names import refuse_unknown_fields
from prefect_vertex_launch.blocks.gcp_credentials import GcpCredentials
from prefect_vertex_launch.blocks.wandb_credentials import LOGO_URL, WandbCredentials
from prefect_vertex_launch.core.errors import InvalidQueueConfig, NotFound, Problem
from prefect_vertex_launch.core.shared_limit import SHARED_LIMIT_PREFIX, shared_limit_name
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults, parse_queue_config
from prefect_vertex_launch.jobspec.locks import Locks
from prefect_vertex_launch.vertex.call_budget import CALLS_PER_MINUTE, SUBMISSIONS_PER_MINUTE
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import WandbQueue

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
        from prefect_vertex_launch.blocks import VertexLaunchQueue

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
    shared_limits: list[str] = Field(
        default_factory=list,
        title="Shared limits",
        description=(
            "Names of Prefect global concurrency limits under which each job of this queue counts as well; "
            "queues that name the same one share it. Create them first. One whose name begins with "
            f"{SHARED_LIMIT_PREFIX} is put right by the agents after a restart of Prefect's server; nothing "
            "but launches may count under it."
        ),
        examples=[[shared_limit_name("gpus")]],
    )
    max_schedulers: int = Field(
        default=1,
        title="Sweep schedulers at once",
        description="How many sweep schedulers of this queue may be under way at once; -1 for no limit.",
        ge=-1,
    )
    scheduler_image: str | None = Field(
        default=None,
        title="Sweep scheduler image",
        description=(
            "Image with wandb in it that runs the schedulers of sweeps as small jobs of their own; "
            "without one, a scheduler that brings no image is refused."
        ),
        examples=["us-docker.pkg.dev/my-project/tools/wandb:latest"],
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
    launch: dict[str, Any] = Field(
        default_factory=dict,
        title="launch",
        description=(
            "Which worker pools get a launch's command, which replicas are the W&B run, and what to try "
            "where capacity is short; what a run brings along wins."
        ),
        examples=[{"fallbacks": [{"location": "us-east1"}, {"run": {"scheduling_strategy": "STANDARD"}}]}],
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
    calls_per_minute: int = Field(
        default=CALLS_PER_MINUTE,
        title="Calls a minute",
        description=(
            "Calls to Vertex AI in any 60 seconds, of an agent that is alone in a region of the project. "
            "Several share twice as many: Google allows 600, unless the project has another quota."
        ),
        gt=0,
    )
    submissions_per_minute: int = Field(
        default=SUBMISSIONS_PER_MINUTE,
        title="Submissions a minute",
        description=(
            "Jobs created in any 60 seconds, by all agents in one region of the project. Google allows 60, "
            "unless the project has another quota."
        ),
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
    start_timeout_seconds: float | None = Field(
        default=None,
        title="Start timeout",
        description=(
            "Seconds that a program may take from its start on Vertex AI until its run shows up at W&B; "
            "waiting for machines does not count. Empty for no end."
        ),
        examples=[1800],
        gt=0,
    )
    queueing_timeout_seconds: float | None = Field(
        default=None,
        title="Queueing timeout",
        description=(
            "Seconds that a job may wait for quota and machines before its next fallback, if there is one, "
            "is tried, or else it is given up. Empty for no end."
        ),
        examples=[86400],
        gt=0,
    )
    long_wait_seconds: float = Field(
        default=900.0,
        title="Long wait",
        description="Seconds that a job waits for quota or machines before its item at W&B gets a warning.",
        gt=0,
    )
    max_relaunches: int = Field(
        default=3,
        title="Relaunches",
        description=(
            "How often a run is launched again after a preemption or a failure of the infrastructure, "
            "under the same W&B run; failures of its own program are final."
        ),
        ge=0,
    )
    api_key_secret: str | None = Field(
        default=None,
        title="API key secret",
        description=(
            "Secret Manager version that holds the W&B API key of the jobs. With one, a job's environment "
            "names it and carries no key."
        ),
        examples=["projects/my-project/secrets/wandb-api-key/versions/latest"],
    )
    secure_mode: bool = Field(
        default=False,
        title="Secure mode",
        description="Lock everything below that has no list of its own to what this block itself says.",
    )
    allowed_images: list[str] = Field(
        default_factory=list,
        title="Allowed images",
        description="The only images that jobs may run; * stands for anything. Empty for any.",
        examples=[["us-docker.pkg.dev/my-project/training/*"]],
    )
    allowed_entry_points: list[str] = Field(
        default_factory=list,
        title="Allowed entry points",
        description="The only entry points that a launch may bring, as one command line each. Empty for any.",
        examples=[["python train.py"]],
    )
    allowed_commands: list[str] = Field(
        default_factory=list,
        title="Allowed commands",
        description="The only commands that containers may run, as one command line each. Empty for any.",
        examples=[["python train.py", "torchrun *"]],
    )
    allowed_service_accounts: list[str] = Field(
        default_factory=list,
        title="Allowed service accounts",
        description="The only service accounts that jobs may run as. Empty for any.",
        examples=[["trainer@my-project.iam.gserviceaccount.com"]],
    )
    allowed_networks: list[str] = Field(
        default_factory=list,
        title="Allowed networks",
        description="The only networks and network attachments that jobs may join. Empty for any.",
        examples=[["projects/12345/global/networks/training"]],
    )
    allowed_machine_types: list[str] = Field(
        default_factory=list,
        title="Allowed machine types",
        description="The only machine types that jobs may use; * stands for anything. Empty for any.",
        examples=[["n1-standard-*", "g2-standard-8"]],
    )
    endpoint: str | None = Field(
        default=None,
        title="Vertex AI endpoint",
        description=(
            "Another endpoint than the region's own: https://host, or grpc://host:port in the clear; "
            "{location} in it stands for the region."
        ),
        examples=["grpc://127.0.0.1:8085"],
    )

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON schema, as `Block` has it."""
        return copy.deepcopy(cls._schema_made_once(args, frozenset(kwargs.items())))

    @classmethod
    @cache
    def _schema_made_once(cls, args: tuple[Any, ...], kwargs: frozenset[tuple[str, Any]]) -> dict[str, Any]:
        # Prefect asks for the schema anew for each field of a block that it saves, 40 times and more.
        return super().model_json_schema(*args, **dict(kwargs))

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
            parse_queue_config(None, defaults=self.defaults(), where="block")
        except InvalidQueueConfig as error:
            wrong = [problem for problem in error.problems if not _may_come_with_the_run(problem)]
            if wrong:
                raise ValueError(str(InvalidQueueConfig(wrong))) from error
        return self

    @property
    def limit_name(self) -> str:
        """The global concurrency limit that stands for `max_jobs`."""
        return f"vertex-launch:{self.entity}:{self.queue}"

    @property
    def scheduler_limit_name(self) -> str:
        """The global concurrency limit that stands for `max_schedulers`."""
        return f"{self.limit_name}:schedulers"

    @property
    def locations(self) -> list[str]:
        """The regions that this block itself sends jobs to: its own, and those of its fallbacks."""
        fallbacks = self.launch.get("fallbacks") or ()
        return list(
            dict.fromkeys([self.location, *(each["location"] for each in fallbacks if "location" in each)])
        )

    def defaults(self) -> QueueDefaults:
        """Return the configuration for what a run does not bring along."""
        return QueueDefaults(
            spec=self.spec, run=self.run, launch=self.launch, staging_bucket=self.staging_bucket
        )

    def scheduler_locks(self) -> Locks:
        """Return what the sweep schedulers of this queue are locked to.

        The block's image for them, and the command that W&B gives them, are as good as its own word.
        """
        locks = self.locks()
        image = () if self.scheduler_image is None else (self.scheduler_image,)
        command = ("wandb scheduler *",)
        return replace(
            locks,
            images=None if locks.images is None else (*locks.images, *image),
            entry_points=None if locks.entry_points is None else (*locks.entry_points, *command),
            commands=None if locks.commands is None else (*locks.commands, *command),
        )

    def locks(self) -> Locks:
        """Return what the jobs of this queue are locked to."""
        return Locks.of(
            secure_mode=self.secure_mode,
            images=self.allowed_images or None,
            entry_points=self.allowed_entry_points or None,
            commands=self.allowed_commands or None,
            service_accounts=self.allowed_service_accounts or None,
            networks=self.allowed_networks or None,
            machine_types=self.allowed_machine_types or None,
        )

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

    def open_vertex_jobs(self, location: str | None = None, project: str | None = None) -> VertexJobs:
        """Return a client of the jobs in a region and project, the block's own where none is named.

        Nothing is sent before its first call.
        """
        location = location or self.location
        plain = self.endpoint is not None and self.endpoint.startswith("grpc://")
        return VertexJobs(
            project=project or self.project,
            location=location,
            credentials=None if plain else self.gcp_credentials.get_credentials_from_service_account(),
            endpoint=self.endpoint and self.endpoint.replace("{location}", location),
            timeout_seconds=self.call_timeout_seconds,
            create_timeout_seconds=self.create_timeout_seconds,
            calls_per_minute=self.calls_per_minute,
            submissions_per_minute=self.submissions_per_minute,
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
