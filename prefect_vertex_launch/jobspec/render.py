"""Run spec + queue configuration → the CustomJob that goes to Vertex AI. Pure and deterministic.

What a launch adds to a queue's configuration:

    macros         `${image_uri} ${project_name} ${entity_name} ${run_id} ${run_name} ${author}` in every
                   string leaf, other names only from the block's allow-list. Unknown ones stay in
                   `command`, `args` and the values of `env`, where a shell may mean them (a warning
                   says so), and are refused anywhere else.
    env            W&B's variables, after the queue's own, for each pool that runs the launch: unless
                   `launch.command_pools` says otherwise, its image is or contains `${image_uri}`, or
                   equals the image. A queue's variable of the same name gives way (a warning says so).
                   The first of these pools is the W&B run; the others get its id as their group only,
                   unless `launch.run_id_replicas` is "all".
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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from prefect_vertex_launch.core.errors import InvalidQueueConfig, Problem
from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_unicode, shown
from prefect_vertex_launch.core.labels import (
    ATTEMPT_LABEL,
    ITEM_LABEL,
    QUEUE_LABEL,
    RUN_ID_LABEL,
    job_labels,
    label_value,
    launch_key,
    queue_key,
)
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.jobspec.bootstrap import put_in_front
from prefect_vertex_launch.jobspec.config.arguments import EXTRA_ARGUMENTS
from prefect_vertex_launch.jobspec.config.config_check import QueueConfig, check_config
from prefect_vertex_launch.jobspec.config.job_rules import may_start_again
from prefect_vertex_launch.jobspec.config.launch_options import CommandPools, RunIdReplicas
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults
from prefect_vertex_launch.jobspec.config.worker_pools import TASKS, check_env_count
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.environment import (
    RUN_GROUP,
    companion_environment,
    join_literally,
    launch_environment,
    literal_text,
)
from prefect_vertex_launch.jobspec.locks import LaunchProgram, check_locks, own_words
from prefect_vertex_launch.jobspec.macros import LAUNCH_MACROS, fill_macros
from prefect_vertex_launch.jobspec.redaction import is_secret_name, mask, redacted_job
from prefect_vertex_launch.jobspec.run_spec import RunSpec

__all__ = [
    "ATTEMPT_LABEL",
    "ITEM_LABEL",
    "QUEUE_LABEL",
    "RUN_ID_LABEL",
    "LaunchContext",
    "Rendering",
    "launch_key",
    "queue_key",
    "render",
]

_MAX_DISPLAY_NAME: Final = 128
# Where ${NAME} may be meant for a shell in the container; so it may in the values of `env`.
_SHELL_FIELDS: Final = ("command", "args")
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

    def redacted(self) -> dict[str, Any]:
        """Return the job as JSON for people, with API keys and secret-looking values masked."""
        return redacted_job(self.job, self.secrets)


def render(run_spec: RunSpec, config: QueueConfig, context: LaunchContext) -> Rendering:
    """Return the CustomJob of a launch.

    Raises InvalidQueueConfig, with every problem, when the configuration does not hold once the
    macros are filled in, or does not fit to the queue's block.
    """
    return _Renderer(run_spec, config, context).rendering()


class _Renderer:
    """One rendering under way."""

    def __init__(self, run_spec: RunSpec, config: QueueConfig, context: LaunchContext) -> None:
        self._run_spec = run_spec
        self._given = config
        self._context = context
        self._findings = Findings()
        self._allowed = {name: value for name, value in context.macros.items() if value is not None}
        secrets = {value for name, value in self._allowed.items() if is_secret_name(name)}
        secrets.add(context.api_key.get_secret_value())
        # In labels and in variables they take another form.
        self._secrets = frozenset({*secrets, *map(label_value, secrets), *map(literal_text, secrets)})

    def rendering(self) -> Rendering:
        launch_pools = self._launch_pools()
        config = self._filled()
        self._check_home(config)
        spec = config.spec
        pools: list[dict[str, Any]] = spec.get("worker_pool_specs", [])
        for index, environment in self._environments(config, launch_pools).items():
            if index < len(pools):
                self._add_launch(pools[index], self._pool_path(config, index), environment)
        job_fields = self._job_fields(config)
        self._raise_problems()
        job = CustomJob(**job_fields)
        self._secure(job, launch_pools, config)
        return Rendering(
            parent=f"projects/{self._context.project}/locations/{self._context.location}",
            job=job,
            create_timeout_seconds=config.run.get("create_request_timeout"),
            warnings=self._warnings(),
            secrets=self._secrets,
        )

    def _secure(self, job: CustomJob, launch_pools: tuple[int, ...], config: QueueConfig) -> None:
        """Hold the finished job against the block's locks, then put in front what its commands need."""
        context, entry_point = self._context, self._run_spec.overrides.entry_point
        if context.locks is not None:
            names = launch_environment(self._run_spec, context, may_start_again=True)
            program = LaunchProgram(
                entry_point=entry_point,
                job_entry_point=context.job_entry_point,
                has_code=context.code is not None,
                variables=frozenset({*names, RUN_GROUP}),
            )
            own = own_words(context.block_defaults or QueueDefaults(spec={}, run={}), context.macros)
            check_locks(job, program, context.locks, own, path_of=config.path_of, findings=self._findings)
        put_in_front(job, launch_pools, context, path_of=config.path_of, findings=self._findings)
        self._raise_problems()

    def _raise_problems(self) -> None:
        if self._findings.problems:
            raise InvalidQueueConfig([self._without_secrets(problem) for problem in self._findings.problems])

    def _without_secrets(self, problem: Problem) -> Problem:
        parts = (problem.where, problem.what, problem.why, problem.fix)
        return Problem(*(mask(part, self._secrets) for part in parts))

    def _warnings(self) -> tuple[str, ...]:
        """Return the run spec's warnings and what is doubtful only now; the queue's are known already."""
        found = (*self._run_spec.warnings, *self._findings.warnings)
        return tuple(mask(text, self._secrets) for text in found if text not in self._given.warnings)

    def _launch_pools(self) -> tuple[int, ...]:
        """Return the indices of the pools that run the launch, in order."""
        chosen = self._given.launch.command_pools
        if not isinstance(chosen, CommandPools):
            return chosen
        pools: list[dict[str, Any]] = self._given.spec.get("worker_pool_specs", [])
        found = tuple(
            index for index, pool in enumerate(pools) if chosen is CommandPools.ALL or self._has_image(pool)
        )
        if not found:
            self._findings.warn(
                self._given.path_of("spec", "worker_pool_specs"),
                "no worker pool runs the launch's image; write image_uri: ${image_uri} where it should run, "
                "or name the pools in launch.command_pools",
            )
        return found

    def _has_image(self, pool: Mapping[str, Any]) -> bool:
        image = _image_of(pool)
        return bool(image) and ("${image_uri}" in image or image == self._context.image_uri)

    def _environments(
        self, config: QueueConfig, launch_pools: tuple[int, ...]
    ) -> Mapping[int, Mapping[str, str]]:
        """Return the variables for each pool that runs the launch: the first one is the W&B run."""
        own = launch_environment(self._run_spec, self._context, may_start_again=may_start_again(config.run))
        if self._given.launch.run_id_replicas is RunIdReplicas.ALL or not launch_pools:
            return dict.fromkeys(launch_pools, own)
        first, *others = launch_pools
        pools: list[dict[str, Any]] = config.spec.get("worker_pool_specs", [])
        replicas = pools[first].get("replica_count") if first < len(pools) else None
        if isinstance(replicas, int) and replicas > 1:
            self._findings.warn(
                at(self._pool_path(config, first), "replica_count"),
                f"{replicas} replicas share one environment and so are all of them the same W&B run; "
                "run the launch in the first pool too, or let one of them open the run",
            )
        return {first: own} | dict.fromkeys(others, companion_environment(own))

    def _filled(self) -> QueueConfig:
        """Return the configuration with its macros filled in, checked once more."""
        values = self._macro_values()

        def fill(section: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: self._fill_pools(value, values, self._given.path_of(section, name))
                if name == "worker_pool_specs"
                else fill_macros(value, values, self._given.path_of(section, name), self._refuse_macro)
                for name, value in arguments.items()
            }

        spec, run = fill("spec", self._given.spec), fill("run", self._given.run)
        return check_config(spec, run, self._given.paths, self._findings, macros_pending=False)

    def _fill_pools(self, pools: list[dict[str, Any]], values: Mapping[str, str], path: str) -> Any:
        """Fill the pools: unknown macros are left to the shell where a task may have one."""
        filled: list[dict[str, Any]] = []
        for index, pool in enumerate(pools):
            where = at(path, index)
            plain = {name: value for name, value in pool.items() if name not in TASKS}
            result = fill_macros(plain, values, where, self._refuse_macro)
            for task in TASKS:
                if task in pool:
                    result[task] = {
                        name: self._fill_task_field(name, value, values, at(at(where, task), name))
                        for name, value in pool[task].items()
                    }
            filled.append(result)
        return filled

    def _fill_task_field(self, name: str, value: Any, values: Mapping[str, str], path: str) -> Any:
        if name != "env":
            on_unknown = self._leave_macro if name in _SHELL_FIELDS else self._refuse_macro
            return fill_macros(value, values, path, on_unknown)
        return [
            # Vertex AI expands $(NAME) in the values of variables: what a macro brings in is no such name.
            {
                key: fill_macros(text, values, at(at(path, index), key), self._leave_macro, join_literally)
                if key == "value"
                else fill_macros(text, values, at(at(path, index), key), self._refuse_macro)
                for key, text in variable.items()
            }
            for index, variable in enumerate(value)
        ]

    def _macro_values(self) -> dict[str, str]:
        run_spec, context = self._run_spec, self._context
        values = {
            **self._allowed,
            "image_uri": context.image_uri,
            "project_name": run_spec.project,
            "entity_name": run_spec.entity,
            "run_id": context.run_id,
            "run_name": run_spec.run_name or context.run_id,
            "author": run_spec.author or "",
        }
        for name, value in values.items():
            if not is_unicode(value) or "\0" in value:
                self._findings.refuse(
                    f"${{{name}}}",
                    "its value is not text",
                    "no field of a job can hold it",
                    "Correct it where it comes from: the launch, or the worker's environment.",
                )
                values[name] = ""
        return values

    def _known_macros(self) -> str:
        return ", ".join((*LAUNCH_MACROS, *sorted(self._allowed.keys() - set(LAUNCH_MACROS))))

    def _refuse_macro(self, path: str, name: str) -> None:
        if name in self._context.macros:
            self._findings.refuse(
                path,
                f"${{{name}}} is allowed, but not set in the worker's environment",
                "a macro of the block's allow-list is a variable of the worker",
                f"Set {name} where the worker runs.",
            )
            return
        self._findings.refuse(
            path,
            f"${{{shown(name)[1:-1]}}} is not a known macro",
            "only the launch's own names and those that the queue's block allows are filled in",
            f"Use one of {self._known_macros()}, or allow it in the block.",
        )

    def _leave_macro(self, path: str, name: str) -> None:
        reason = (
            "allowed, but not set in the worker's environment"
            if name in self._context.macros
            else f"not a macro (known are {self._known_macros()})"
        )
        self._findings.warn(path, f"${{{shown(name)[1:-1]}}} is left as it is: {reason}")

    def _check_home(self, config: QueueConfig) -> None:
        """Refuse another project or region than the block's: jobs are watched and limited there."""
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

    def _pool_path(self, config: QueueConfig, index: int) -> str:
        return at(config.path_of("spec", "worker_pool_specs"), index)

    def _add_launch(self, pool: dict[str, Any], path: str, environment: Mapping[str, str]) -> None:
        """Put the launch's environment, arguments and entry point into a pool that runs it."""
        name = next((task for task in TASKS if task in pool), None)
        if name is None:
            return
        task, where = pool[name], at(path, name)
        own_names = {variable.get("name") for variable in task.get("env", ())}
        if "WANDB_RUN_ID" not in environment and RUN_GROUP in own_names:
            environment = {key: value for key, value in environment.items() if key != RUN_GROUP}
        kept: list[dict[str, Any]] = []
        for index, variable in enumerate(task.get("env", ())):
            if variable.get("name") in environment:
                self._findings.warn(
                    at(at(where, "env"), index), f"{variable['name']} is set by the launch; its value is used"
                )
            else:
                kept.append(variable)
        task["env"] = [*kept, *({"name": name, "value": value} for name, value in environment.items())]
        check_env_count(len(task["env"]), at(where, "env"), self._findings)
        if self._run_spec.overrides.args:
            task["args"] = list(self._run_spec.overrides.args)
        self._set_command(task, where, is_container=name == TASKS[0])

    def _set_command(self, task: dict[str, Any], where: str, *, is_container: bool) -> None:
        override, of_job = self._run_spec.overrides.entry_point, self._context.job_entry_point
        if not is_container:
            if override or of_job:
                self._findings.warn(
                    where, "a Python package has no command; the launch's entry point is not used"
                )
        elif override:
            task["command"] = list(override)
        elif of_job and not task.get("command"):
            task["command"] = list(of_job)
        elif of_job:
            self._findings.warn(at(where, "command"), "is used instead of the job's entry point")

    def _job_fields(self, config: QueueConfig) -> dict[str, Any]:
        """Return the fields of the CustomJob, as `CustomJob(…)` and `submit(…)` of the SDK set them."""
        spec, run = config.spec, config.run
        job_spec: dict[str, Any] = {
            "worker_pool_specs": spec.get("worker_pool_specs"),
            "base_output_directory": {"output_uri_prefix": self._base_output_dir(spec)},
            "persistent_resource_id": run.get("persistent_resource_id") or spec.get("persistent_resource_id"),
            "scheduling": _scheduling(run),
            **self._experiment(config),
        }
        for name in (
            "service_account",
            "network",
            "tensorboard",
            "psc_interface_config",
            "enable_web_access",
            *EXTRA_ARGUMENTS,
        ):
            job_spec[name] = run.get(name) or None
        key = spec.get("encryption_spec_key_name")
        return {
            "display_name": self._display_name(config),
            "job_spec": job_spec,
            "labels": self._labels(config),
            "encryption_spec": {"kms_key_name": key} if key else None,
        }

    def _base_output_dir(self, spec: Mapping[str, Any]) -> str:
        bucket = spec.get("staging_bucket", "").rstrip("/")
        return spec.get("base_output_dir") or f"{bucket}/vertex-launch/{launch_key(self._context.item_id)}"

    def _experiment(self, config: QueueConfig) -> dict[str, str]:
        """Return the resource names of experiment and run, which the SDK would look up on the network.

        Source of the format: the comments of `CustomJobSpec.experiment` and `experiment_run`.
        """
        experiment: str = config.run.get("experiment") or ""
        if not experiment:
            return {}
        if "/" not in experiment:
            home = f"projects/{self._context.project}/locations/{self._context.location}"
            experiment = f"{home}/metadataStores/default/contexts/{experiment}"
        experiment_run: str = config.run.get("experiment_run") or ""
        if not experiment_run:
            return {"experiment": experiment}
        if "/" not in experiment_run:
            experiment_run = f"{experiment}-{experiment_run}"
        elif not experiment_run.startswith(f"{experiment}-"):
            self._findings.refuse(
                config.path_of("run", "experiment_run"),
                f"{shown(experiment_run)} is not a run of {shown(experiment)}",
                "the full name of a run is that of its experiment, a dash and its own name",
                "Write the run's own name alone.",
            )
        return {"experiment": experiment, "experiment_run": experiment_run}

    def _display_name(self, config: QueueConfig) -> str:
        name = config.spec.get("display_name") or self._run_spec.run_name or self._context.run_id
        self._refuse_secret((name,), config.path_of("spec", "display_name"))
        if len(name) > _MAX_DISPLAY_NAME:
            where = config.path_of("spec", "display_name") if config.spec.get("display_name") else "name"
            self._findings.warn(where, f"cut to {_MAX_DISPLAY_NAME} characters for the job's display name")
        return name[:_MAX_DISPLAY_NAME]

    def _labels(self, config: QueueConfig) -> dict[str, str]:
        context = self._context
        launch = {
            RUN_ID_LABEL: context.run_id,
            ITEM_LABEL: launch_key(context.item_id),
            QUEUE_LABEL: queue_key(context.queue_entity, context.queue_name),
            ATTEMPT_LABEL: str(context.attempt),
        }
        user: dict[str, str] = config.spec.get("labels", {})
        for key, value in user.items():
            self._refuse_secret((key, value), at(config.path_of("spec", "labels"), key))
        return job_labels(user, launch, config.path_of("spec", "labels"), self._findings)

    def _refuse_secret(self, texts: Iterable[str], path: str) -> None:
        """Refuse a secret that a macro has brought where everybody may read it."""
        if any(mask(text, self._secrets) != text for text in texts):
            self._findings.refuse(
                path,
                "holds the value of a secret macro",
                "labels and names of jobs are shown to everybody and kept for good",
                "Use it in env only.",
            )


def _image_of(pool: Mapping[str, Any]) -> str:
    container: Mapping[str, Any] = pool.get(TASKS[0], {})
    package: Mapping[str, Any] = pool.get(TASKS[1], {})
    return container.get("image_uri") or package.get("executor_image_uri") or ""


def _scheduling(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the Scheduling message's fields, or None where the SDK sets none (0 may mean unset)."""
    timeout, max_wait = run.get("timeout"), run.get("max_wait_duration")
    restart, disable = run.get("restart_job_on_worker_restart"), run.get("disable_retries")
    strategy = run.get("scheduling_strategy")
    if not (timeout or restart or disable or strategy or max_wait is not None):
        return None
    return {
        "timeout": Duration(seconds=timeout) if timeout else None,
        "restart_job_on_worker_restart": bool(restart),
        "disable_retries": bool(disable),
        "strategy": strategy,
        "max_wait_duration": None if max_wait is None else Duration(seconds=max_wait),
    }
