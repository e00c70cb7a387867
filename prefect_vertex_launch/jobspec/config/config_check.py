"""A queue's configuration, checked: what it holds, and the check of everything that goes into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.jobspec.config.arguments import ARGUMENTS, check_argument
from prefect_vertex_launch.jobspec.config.field_walk import FieldWalk
from prefect_vertex_launch.jobspec.config.job_rules import check_job
from prefect_vertex_launch.jobspec.config.launch_options import LaunchOptions
from prefect_vertex_launch.jobspec.config.worker_pools import check_pools


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """A checked configuration; macros may still stand in it.

    `paths` maps `spec.<argument>`, `run.<argument>` and `launch.<key>` to where the value was written.
    `spec` and `run` hold no nulls; what may stand in either is in `run`, the persistent resource apart.
    """

    spec: dict[str, Any] = field(repr=False)
    run: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict[str, str])
    launch: LaunchOptions = field(default_factory=LaunchOptions)

    def path_of(self, section: str, name: str) -> str:
        """Return where an argument was written, or where it would be."""
        return self.paths.get(f"{section}.{name}", f"{section}.{name}")

    def plan(self, index: int) -> QueueConfig:
        """Return the configuration as written for 0, and with a fallback laid over for 1, 2, and so on.

        Raises IndexError if there is no such fallback.
        """
        if index == 0:
            return self
        fallback = self.launch.fallbacks[_position(index)]
        return QueueConfig(fallback.spec, fallback.run, fallback.warnings, fallback.paths, self.launch)

    def location_of(self, index: int) -> str | None:
        """Return the region of `plan(index)`, None for the block's. Raises IndexError as `plan` does."""
        return None if index == 0 else self.launch.fallbacks[_position(index)].location


def check_config(
    spec: Mapping[str, Any],
    run: Mapping[str, Any],
    paths: Mapping[str, str],
    findings: Findings,
    *,
    macros_pending: bool,
) -> QueueConfig:
    """Check every argument and what ties them together; problems and warnings go to `findings`.

    With `macros_pending` a number, enum or flag may still be exactly one macro, and rules about a
    text with a macro wait. Returns what was usable.
    """
    walk = FieldWalk(findings, macros_pending=macros_pending)
    clean: dict[str, dict[str, Any]] = {"spec": {}, "run": {}}
    for section, values in (("spec", spec), ("run", run)):
        for name, value in values.items():
            path = paths.get(f"{section}.{name}", f"{section}.{name}")
            if value is not None:
                taken = check_argument(ARGUMENTS[section][name], value, path, walk)
                clean[section].update({} if taken is None else {name: taken})
    config = QueueConfig(spec=clean["spec"], run=clean["run"], paths=paths)
    _require(config, findings)
    check_pools(
        config.spec.get("worker_pool_specs", []),
        config.path_of("spec", "worker_pool_specs"),
        persistent=is_persistent(config),
        findings=findings,
        macros_pending=macros_pending,
    )
    check_job(config.spec, config.run, config.path_of, findings)
    return QueueConfig(config.spec, config.run, findings.warnings, config.paths)


def is_persistent(config: QueueConfig) -> bool:
    """Tell whether a persistent resource runs the job."""
    return bool(config.spec.get("persistent_resource_id") or config.run.get("persistent_resource_id"))


def _position(index: int) -> int:
    if index < 1:
        raise IndexError(index)
    return index - 1


def _require(config: QueueConfig, findings: Findings) -> None:
    if "worker_pool_specs" not in config.spec:
        findings.refuse(
            config.path_of("spec", "worker_pool_specs"),
            "missing",
            "a job needs at least one worker pool",
            "Add a list with one pool: machine_spec, replica_count and container_spec.",
        )
    if not config.spec.get("staging_bucket"):
        findings.refuse(
            config.path_of("spec", "staging_bucket"),
            "missing",
            "the job's output goes there",
            "Set it to gs://your-bucket, here or in the queue's block.",
        )
