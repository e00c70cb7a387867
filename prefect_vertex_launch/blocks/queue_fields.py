"""The fields of a `VertexLaunchQueue`: the form that a person fills in, in its order.

What is made of them is in `vertex_queue.py`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator

from prefect_vertex_launch.blocks.field_names import refuse_unknown_fields
from prefect_vertex_launch.blocks.gcp_credentials import GcpCredentials
from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.core.shared_limit import SHARED_LIMIT_PREFIX, shared_limit_name
from prefect_vertex_launch.vertex.call_budget import CALLS_PER_MINUTE, SUBMISSIONS_PER_MINUTE

_EXAMPLE_SPEC = {
    "worker_pool_specs": [
        {
            "machine_spec": {"machine_type": "n1-standard-8"},
            "replica_count": 1,
            "container_spec": {"image_uri": "${image_uri}"},
        }
    ]
}


class QueueFields(BaseModel):
    """The fields, and the rules that hold for each of them by itself."""

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
    allowed_entities: list[str] = Field(
        default_factory=list,
        title="Other entities",
        description=(
            "W&B entities beside the queue's own to which its runs may be logged, and whose jobs may be "
            "read, with this block's key; * stands for anything. A run that brings its author's key may go "
            "anywhere."
        ),
        examples=[["research", "team-*"]],
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
