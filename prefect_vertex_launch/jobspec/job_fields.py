"""The fields of a CustomJob, as Google's SDK sets them in `CustomJob(…)` and `submit(…)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, shown
from prefect_vertex_launch.core.labels import (
    ATTEMPT_LABEL,
    ITEM_LABEL,
    QUEUE_LABEL,
    RUN_ID_LABEL,
    job_labels,
)
from prefect_vertex_launch.core.secrets import MIN_SECRET_CHARACTERS
from prefect_vertex_launch.jobspec.config.arguments import EXTRA_ARGUMENTS
from prefect_vertex_launch.jobspec.config.config_check import QueueConfig
from prefect_vertex_launch.jobspec.context import LaunchContext

_MAX_DISPLAY_NAME: Final = 128


class JobFields:
    """The fields of one launch's job.

    `run_name` is the name that the run spec gives, if it gives one. `secrets` may stand in no field
    that everybody may read. `findings` takes the problems and warnings.
    """

    def __init__(
        self, run_name: str | None, context: LaunchContext, secrets: Iterable[str], findings: Findings
    ) -> None:
        self._name = run_name or context.run_id
        self._context = context
        self._secrets = frozenset(secrets)
        self._findings = findings

    def of(self, config: QueueConfig) -> dict[str, Any]:
        """Return the fields; `config` is the queue's configuration with its macros filled in."""
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

    @property
    def _item_key(self) -> str:
        return self._context.queue.item_key(self._context.item_id)

    def _base_output_dir(self, spec: Mapping[str, Any]) -> str:
        bucket = spec.get("staging_bucket", "").rstrip("/")
        return spec.get("base_output_dir") or f"{bucket}/vertex-launch/{self._item_key}"

    def _experiment(self, config: QueueConfig) -> dict[str, str]:
        """Return the resource names of experiment and run, which the SDK would look up on the network.

        Source of the format: the comments of `CustomJobSpec.experiment` and `experiment_run`.
        """
        experiment: str = config.run.get("experiment") or ""
        if not experiment:
            return {}
        if "/" not in experiment:
            experiment = f"{self._context.parent}/metadataStores/default/contexts/{experiment}"
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
        written: str = config.spec.get("display_name") or ""
        name, path = written or self._name, config.path_of("spec", "display_name")
        self._refuse_secret((name,), path)
        if len(name) > _MAX_DISPLAY_NAME:
            where = path if written else "name"
            self._findings.warn(where, f"cut to {_MAX_DISPLAY_NAME} characters for the job's display name")
        return name[:_MAX_DISPLAY_NAME]

    def _labels(self, config: QueueConfig) -> dict[str, str]:
        context = self._context
        launch = {
            RUN_ID_LABEL: context.run_id,
            ITEM_LABEL: self._item_key,
            QUEUE_LABEL: context.queue.key,
            ATTEMPT_LABEL: str(context.attempt),
        }
        user: dict[str, str] = config.spec.get("labels", {})
        for key, value in user.items():
            self._refuse_secret((key, value), at(config.path_of("spec", "labels"), key))
        return job_labels(user, launch, config.path_of("spec", "labels"), self._findings)

    def _refuse_secret(self, texts: Iterable[str], path: str) -> None:
        """Refuse a secret that a macro has brought where everybody may read it."""
        secrets = [secret for secret in self._secrets if len(secret) >= MIN_SECRET_CHARACTERS]
        if any(secret in text for text in texts for secret in secrets):
            self._findings.refuse(
                path,
                "holds the value of a secret macro",
                "labels and names of jobs are shown to everybody and kept for good",
                "Use it in env only.",
            )


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
