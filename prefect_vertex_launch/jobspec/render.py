"""Run spec + queue configuration → the CustomJob that goes to Vertex AI. Pure and deterministic.

What a launch adds to a queue's configuration:

    macros         `${image_uri} ${project_name} ${entity_name} ${run_id} ${run_name} ${author}` in every
                   string leaf, other names only from the block's allow-list. Unknown ones stay in
                   `command`, `args` and the values of `env`, where a shell may mean them (a warning
                   says so), and are refused anywhere else.
    env            W&B's variables, after the queue's own, for each pool that runs the launch: unless
                   `launch.command_pools` says otherwise, its image is or contains `${image_uri}`, or
                   equals the image. A queue's variable of the same name gives way (a warning says so).
                   The first of these pools is the W&B run. Each further one gets only the run's id, as
                   its group, unless `launch.run_id_replicas` is "all".
    args           a launch's arguments replace the queue's `args`, in the same pools.
    command        a launch's entry point replaces the queue's `command`, in the same pools; without
                   one the queue's own `command` stays, and only then the job's entry point is used.
    labels         the user's, put into form, and the launch's own four.
    display_name   the queue's, else the run's name, else its id.
    base_output_dir  the queue's, else a directory of this item in the staging bucket: the same one for
                   every attempt, where the SDK would make up a new one from the time of day.

The other pools (a reduction server, say) are left as the queue wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_vertex_launch.core.errors import InvalidQueueConfig
from prefect_vertex_launch.core.findings import Findings, TooManyProblems
from prefect_vertex_launch.core.json_value import MAX_JOB_BYTES, shown
from prefect_vertex_launch.core.labels import label_value
from prefect_vertex_launch.core.secrets import is_secret_name, mask
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.jobspec.bootstrap import put_in_front
from prefect_vertex_launch.jobspec.config.config_check import QueueConfig
from prefect_vertex_launch.jobspec.config.macros import too_large_job
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.environment import RUN_GROUP, literal_text
from prefect_vertex_launch.jobspec.filled_config import fill_config
from prefect_vertex_launch.jobspec.job_fields import JobFields
from prefect_vertex_launch.jobspec.launch_pools import LaunchPools, find_launch_pools
from prefect_vertex_launch.jobspec.locks import LaunchProgram, check_locks
from prefect_vertex_launch.jobspec.own_words import own_words
from prefect_vertex_launch.jobspec.redaction import redacted_job
from prefect_vertex_launch.jobspec.run_spec import RunSpec

# Arguments that name a resource as projects/…/locations/<region>/…
_REGIONAL: Final = (
    ("spec", "encryption_spec_key_name", "key"),
    ("run", "tensorboard", "tensorboard"),
    ("run", "experiment", "experiment"),
)


@dataclass(frozen=True, slots=True)
class Rendering:
    """A job that is ready to be created under `parent`.

    `create_timeout_seconds` is the queue's `create_request_timeout`, None for the default.
    """

    parent: str
    job: CustomJob = field(repr=False)
    create_timeout_seconds: float | None = None
    warnings: tuple[str, ...] = ()
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    def redacted(self, secrets: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the job as JSON for people, without API keys, secret-looking values and `secrets`."""
        return redacted_job(self.job, self.secrets | secrets)


def render(run_spec: RunSpec, config: QueueConfig, context: LaunchContext) -> Rendering:
    """Return the CustomJob of a launch.

    Raises InvalidQueueConfig with every problem when the configuration is wrong once its macros are
    filled in, or when the job is not one that the queue's block allows.
    """
    renderer = _Renderer(run_spec, config, context)
    try:
        return renderer.rendering()
    except TooManyProblems:
        raise renderer.refusal() from None


class _Renderer:
    """One rendering under way."""

    def __init__(self, run_spec: RunSpec, config: QueueConfig, context: LaunchContext) -> None:
        self._run_spec = run_spec
        self._given = config
        self._context = context
        self._findings = Findings()
        self._secrets = _secrets_of(context)

    def rendering(self) -> Rendering:
        run_spec, given, context, findings = self._run_spec, self._given, self._context, self._findings
        indices = find_launch_pools(given, context.image_uri, findings)
        config = fill_config(given, run_spec, context, findings)
        self._check_home(config)
        variables = LaunchPools(indices, given.launch, run_spec, context, findings).fill(config)
        job_fields = JobFields(run_spec.run_name, context, self._secrets, findings).of(config)
        self._raise_problems()
        job = CustomJob(**job_fields)
        self._check_size(job)
        self._secure(job, variables, config)
        return Rendering(
            parent=context.parent,
            job=job,
            create_timeout_seconds=config.run.get("create_request_timeout"),
            warnings=self._warnings(),
            secrets=self._secrets,
        )

    def _check_home(self, config: QueueConfig) -> None:
        """Refuse another project or region than the block's, where its jobs are watched and limited."""
        for name, own in (("project", self._context.project), ("location", self._context.location)):
            given = config.spec.get(name)
            if given and given != own:
                self._findings.refuse(
                    config.path_of("spec", name),
                    f"{shown(given)} is not the {name} of the queue's block, {own}",
                    "a queue's jobs are limited and watched in one project and region",
                    "Remove it, or make a queue and a block for it.",
                )
        for section, name, noun in _REGIONAL:
            resource: str = (config.spec if section == "spec" else config.run).get(name, "")
            if resource.count("/") > 4 and resource.split("/")[3] != self._context.location:
                self._findings.warn(
                    config.path_of(section, name),
                    f"the {noun} is not in {self._context.location}, where the job runs",
                )
        if config.run.get("protected_artifact_location_id") == self._context.location:
            self._findings.warn(
                config.path_of("run", "protected_artifact_location_id"),
                "is where the job runs; it is for artifacts that are kept elsewhere",
            )

    def _secure(
        self, job: CustomJob, variables: Mapping[int, Mapping[str, str]], config: QueueConfig
    ) -> None:
        """Check the finished job against the block's locks, then put in front what its commands need."""
        context, entry_point = self._context, self._run_spec.overrides.entry_point
        if context.locks is not None:
            program = LaunchProgram(
                entry_point=entry_point,
                job_entry_point=context.job_entry_point,
                has_code=context.code is not None,
                variables=variables,
                open_variables=frozenset({RUN_GROUP}),
            )
            own = own_words(context.block_defaults or QueueDefaults(spec={}, run={}), context.macros)
            check_locks(job, program, context.locks, own, path_of=config.path_of, findings=self._findings)
        put_in_front(job, tuple(variables), context, path_of=config.path_of, findings=self._findings)
        self._raise_problems()

    def _check_size(self, job: CustomJob) -> None:
        """Refuse a job that no request can hold, whatever the launch has put into its pools."""
        kind: Any = CustomJob
        size_bytes = len(kind.pb(job).SerializeToString())
        if size_bytes > MAX_JOB_BYTES:
            what = f"{size_bytes // 1024} KiB, with what the launch adds to its pools"
            raise InvalidQueueConfig(too_large_job("the whole job", what))

    def _raise_problems(self) -> None:
        if self._findings.problems:
            raise self.refusal()

    def refusal(self) -> InvalidQueueConfig:
        """Return what has been found so far, without its secrets."""
        return InvalidQueueConfig(self._findings.problems).masked(lambda text: mask(text, self._secrets))

    def _warnings(self) -> tuple[str, ...]:
        """Return the warnings of the run spec and of this rendering, without those of the configuration."""
        found = (*self._run_spec.warnings, *self._findings.warnings)
        return tuple(mask(text, self._secrets) for text in found if text not in self._given.warnings)


def _secrets_of(context: LaunchContext) -> frozenset[str]:
    """Return the API key and the values of secret macros, in every form that they take in a job."""
    secrets = {value for name, value in context.macros.items() if value is not None and is_secret_name(name)}
    secrets.add(context.api_key.get_secret_value())
    # In labels and in variables they take another form.
    return frozenset({*secrets, *map(label_value, secrets), *map(literal_text, secrets)})
