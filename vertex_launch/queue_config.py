"""`spec` and `run` of a Vertex queue: everything `aiplatform.CustomJob` takes, checked before any call.

`spec` holds the arguments of `aiplatform.CustomJob(…)`, `run` those of `CustomJob.run(…)`; service
account and persistent resource may stand in either. An item's arguments win over those of the
queue's block, one top-level argument at a time, whichever of the two sections each has chosen.
Nothing is dropped in silence: what cannot be honoured is refused with the reason, what has no effect
is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vertex_launch.arguments import (
    RUN_ARGUMENTS,
    SPEC_ALIASES,
    SPEC_ARGUMENTS,
    Argument,
    check_argument,
    refuse_unknown_argument,
)
from vertex_launch.errors import InvalidQueueConfig, Problem
from vertex_launch.field_walk import FieldWalk
from vertex_launch.findings import Findings
from vertex_launch.job_rules import check_job
from vertex_launch.json_value import at, is_object, json_problems
from vertex_launch.spelling import right_spelling
from vertex_launch.worker_pools import check_pools

__all__ = ["RUN_ARGUMENTS", "SPEC_ARGUMENTS", "QueueConfig", "QueueDefaults", "parse_queue_config"]

_BLOCK: Final = "block"
_ARGUMENTS: Final[Mapping[str, Mapping[str, Argument]]] = {
    "spec": {**SPEC_ARGUMENTS, **SPEC_ALIASES},
    "run": RUN_ARGUMENTS,
}
_EITHER_SECTION: Final = ("service_account", "persistent_resource_id")


@dataclass(frozen=True, slots=True)
class QueueDefaults:
    """What the queue's block adds to every item: defaults for `spec`, `run` and the staging bucket."""

    spec: Mapping[str, Any] = field(repr=False)
    run: Mapping[str, Any] = field(repr=False)
    staging_bucket: str | None = None


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """A checked configuration; macros may still stand in it.

    `paths` maps `spec.<argument>` and `run.<argument>` to where the value was written. `spec` and
    `run` hold no nulls; the service account is always in `run`.
    """

    spec: dict[str, Any] = field(repr=False)
    run: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict[str, str])

    def path_of(self, section: str, name: str) -> str:
        """Return where an argument was written, or where it would be."""
        return self.paths.get(f"{section}.{name}", f"{section}.{name}")


def parse_queue_config(
    resource_args: object | None,
    *,
    defaults: QueueDefaults | None = None,
    where: str = "resource_args.vertex",
) -> QueueConfig:
    """Check the arguments of an item together with the defaults of its block.

    Args:
        resource_args: The item's `{"spec": …, "run": …}`, any JSON; None if it has none.
        defaults: The block's defaults; their paths start with `block`.
        where: The path of `resource_args`.

    Raises InvalidQueueConfig with every problem. A number, enum or flag that is exactly one macro
    passes here and is checked again when the macros have been filled in.
    """
    defaults = defaults or QueueDefaults(spec={}, run={})
    problems = [*_not_json(resource_args, where), *_not_json(_as_json(defaults), _BLOCK)]
    if problems:
        raise InvalidQueueConfig(problems)
    findings = Findings()
    given: dict[str, dict[str, Any]] = {"spec": {}, "run": {}}
    paths: dict[str, str] = {}
    _collect(_as_json(defaults), _BLOCK, given, paths, findings)
    _collect(resource_args, where, given, paths, findings)
    if given["spec"].get("staging_bucket") is None and defaults.staging_bucket:
        given["spec"]["staging_bucket"] = defaults.staging_bucket
        paths["spec.staging_bucket"] = f"{_BLOCK}.staging_bucket"
    _settle_service_account(given, paths, findings)
    for name in ("worker_pool_specs", "staging_bucket"):
        paths.setdefault(f"spec.{name}", f"{where}.spec.{name}")
    config = check_config(given["spec"], given["run"], paths, findings, macros_pending=True)
    if findings.problems:
        raise InvalidQueueConfig(findings.problems)
    return config


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
                taken = check_argument(_ARGUMENTS[section][name], value, path, walk)
                clean[section].update({} if taken is None else {name: taken})
    config = QueueConfig(spec=clean["spec"], run=clean["run"], paths=paths)
    _require(config, findings)
    pools = config.spec.get("worker_pool_specs", [])
    persistent = bool(config.spec.get("persistent_resource_id") or config.run.get("persistent_resource_id"))
    check_pools(
        pools,
        config.path_of("spec", "worker_pool_specs"),
        persistent=persistent,
        findings=findings,
        macros_pending=macros_pending,
    )
    check_job(config.spec, config.run, config.path_of, findings)
    return QueueConfig(config.spec, config.run, findings.warnings, config.paths)


def _as_json(defaults: QueueDefaults) -> dict[str, Any]:
    return {"spec": dict(defaults.spec), "run": dict(defaults.run)}


def _not_json(value: object, where: str) -> tuple[Problem, ...]:
    return json_problems(value, where=where, root=where)


def _collect(
    source: Any, where: str, given: dict[str, dict[str, Any]], paths: dict[str, str], findings: Findings
) -> None:
    """Lay the arguments of one source over those that are there already."""
    if source is None:
        return
    if not is_object(source):
        findings.expected(where, "an object with spec and run", source)
        return
    _set_aside(source, given, paths)
    for section, values in source.items():
        path = at(where, section)
        if section not in given:
            _refuse_section(section, values, where, findings)
        elif is_object(values):
            for name, value in values.items():
                if name not in _ARGUMENTS[section]:
                    refuse_unknown_argument(section, name, path, findings)
                    continue
                given[section][name] = value
                paths[f"{section}.{name}"] = at(path, name)
        elif values is not None:
            findings.expected(path, "an object", values)


def _set_aside(source: dict[str, Any], given: dict[str, dict[str, Any]], paths: dict[str, str]) -> None:
    """Remove what `source` gives as well, be it in the other section, so that its own word counts."""
    for name in _EITHER_SECTION:
        if any(is_object(values := source.get(section)) and name in values for section in given):
            for section, arguments in given.items():
                arguments.pop(name, None)
                paths.pop(f"{section}.{name}", None)


def _refuse_section(section: str, values: Any, where: str, findings: Findings) -> None:
    if section == "builder":
        if values:
            findings.refuse(
                at(where, section),
                "images are not built here",
                "builder says how to build one",
                "Remove it and launch an image, or a job that was made from an image.",
            )
        return
    homes = [home for home, arguments in _ARGUMENTS.items() if right_spelling(section, arguments) == section]
    if homes:
        findings.refuse(at(where, section), "in the wrong place", fix=f"Move it to {homes[0]}.{section}.")
    else:
        findings.unknown_key(where, section, ("spec", "run"), "a Vertex queue's configuration")


def _settle_service_account(
    given: dict[str, dict[str, Any]], paths: dict[str, str], findings: Findings
) -> None:
    """Move the service account to `run`, where the SDK has it; what is there is of the same source."""
    name = "service_account"
    in_spec, in_run = given["spec"].get(name), given["run"].get(name)
    if _is_unset(in_spec):
        given["spec"].pop(name, None)
    elif _is_unset(in_run) or in_run == in_spec:
        given["run"][name] = given["spec"].pop(name)
        paths[f"run.{name}"] = paths.pop(f"spec.{name}")
    else:
        findings.refuse(
            paths[f"spec.{name}"],
            "another service account than in run",
            "a job runs as one service account",
            "Keep one of them.",
        )


def _is_unset(value: Any) -> bool:
    """Tell whether a text says nothing: in the SDK an empty one is the same as none."""
    return value is None or value == ""


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
