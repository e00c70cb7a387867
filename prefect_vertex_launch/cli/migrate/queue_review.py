"""A queue's configuration at W&B, read with both eyes: what W&B's agent made of it, and what we make of it.

Source of what the agent reads: `wandb/sdk/launch/runner/vertex_runner.py`, and `fill_macros` in
`wandb/sdk/launch/_project_spec.py` for macros. What it does not read it drops in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect_vertex_launch.core.errors import InvalidQueueConfig, Problem
from prefect_vertex_launch.core.json_value import at, is_list, is_object, json_problems
from prefect_vertex_launch.jobspec.config.arguments import ARGUMENTS
from prefect_vertex_launch.jobspec.config.macros import LAUNCH_MACROS, FilledSize, fill_macros
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults, parse_queue_config
from prefect_vertex_launch.jobspec.run_spec import VERTEX_RESOURCES

_READ_BY_THE_AGENT: Final[Mapping[str, frozenset[str]]] = {
    "spec": frozenset(
        {"worker_pool_specs", "base_output_dir", "encryption_spec_key_name", "labels", "staging_bucket"}
    ),
    "run": frozenset(
        {
            "timeout", "service_account", "network", "enable_web_access", "experiment", "experiment_run",
            "tensorboard", "restart_job_on_worker_restart",
        }
    ),
}  # fmt: skip
# Said to the SDK's function and not to Vertex AI: nothing changes by them.
_WITHOUT_EFFECT: Final = frozenset({"sync", "create_request_timeout"})
# W&B fills `{{name}}` in from the launch's template variables before an agent sees it.
_TEMPLATE: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class MacroUse:
    """One variable of the agent's environment that the queue uses as `${name}`, and where."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class QueueReview:
    """What a queue's launches meet here.

    `problems` are reasons to refuse each launch that brings no better configuration, `changes` what
    works otherwise than under W&B's agent, `macros` what only an allow-list fills in.
    """

    problems: tuple[Problem, ...] = ()
    changes: tuple[str, ...] = ()
    macros: tuple[MacroUse, ...] = ()


def review_queue(
    config: object, *, resource: str | None, where: str, staging_bucket: str | None = None
) -> QueueReview:
    """Return how a queue of W&B's fares here.

    Args:
        config: The queue's default resource config as W&B keeps it, any JSON; None for none.
        resource: The queue's kind at W&B.
        where: What the queue is called in paths.
        staging_bucket: The bucket of the queue's block, for a configuration that names none.
    """
    if resource not in VERTEX_RESOURCES:
        return QueueReview(problems=(_other_resource(resource, where),))
    if problems := json_problems(config, where=where, root=where):
        return QueueReview(problems=problems)
    resource_args = config.get("resource_args") if is_object(config) else None
    given = resource_args if is_object(resource_args) else {}
    arguments = given.get("vertex") or given.get("gcp-vertex")
    if not arguments:
        return QueueReview(
            changes=(f"{where}: it has no configuration; each run brings its own, or the block has one",)
        )
    arguments = _without_templates(arguments)
    macros = _agent_macros(arguments, where)
    defaults = QueueDefaults(spec={}, run={}, staging_bucket=staging_bucket)
    try:
        parse_queue_config(arguments, defaults=defaults, where=where)
        problems = ()
    except InvalidQueueConfig as error:
        problems = error.problems
    changes = (*_honoured_now(arguments, where), *_changed_pools(arguments, where))
    return QueueReview(problems=problems, changes=changes, macros=macros)


def _other_resource(resource: str | None, where: str) -> Problem:
    return Problem(
        where,
        f"its resource is {resource}" if resource else "it has no resource",
        "only queues of the kind gcp-vertex become Vertex AI jobs",
        "Leave it to W&B's agent and take it out of queues.",
    )


def _without_templates(value: Any) -> Any:
    """Return a copy in which each `{{name}}` is a macro, which may stand for a value of any kind."""
    if is_object(value):
        return {key: _without_templates(item) for key, item in value.items()}
    if is_list(value):
        return [_without_templates(item) for item in value]
    return _TEMPLATE.sub("${image_uri}", value) if isinstance(value, str) else value


def _agent_macros(arguments: Any, where: str) -> tuple[MacroUse, ...]:
    found: list[MacroUse] = []
    known: dict[str, str] = dict.fromkeys(LAUNCH_MACROS, "")
    fill_macros(
        arguments, known, where, lambda path, name: found.append(MacroUse(name, path)), size=FilledSize()
    )
    return tuple(found)


def _honoured_now(arguments: Any, where: str) -> list[str]:
    """Return what the agent dropped and a job has now."""
    changes: list[str] = []
    for section, read in _READ_BY_THE_AGENT.items():
        values: Any = arguments.get(section)
        for name in values if is_object(values) else ():
            is_set = values[name] is not None and values[name] != ""
            if is_set and name in ARGUMENTS[section].keys() - read - _WITHOUT_EFFECT:
                path = at(at(where, section), name)
                changes.append(f"{path}: W&B's agent dropped it; it is honoured now")
    return changes


def _changed_pools(arguments: Any, where: str) -> list[str]:
    """Return what becomes of commands, arguments and pools that the agent treated all alike."""
    path = at(at(where, "spec"), "worker_pool_specs")
    pools = _member(_member(arguments, "spec"), "worker_pool_specs")
    changes: list[str] = []
    for index, pool in enumerate(pools if is_list(pools) else ()):
        container, task = _member(pool, "container_spec"), at(at(path, index), "container_spec")
        if _member(container, "command"):
            changes.append(
                f"{at(task, 'command')}: W&B's agent replaced it with each launch's entry point and "
                "arguments, also with none; it stays now unless a launch brings an entry point"
            )
        if _member(container, "args"):
            changes.append(
                f"{at(task, 'args')}: W&B's agent kept it beside a launch's arguments, which it made part of "
                "the command; a launch's arguments replace it now"
            )
        image = _member(container, "image_uri")
        if isinstance(image, str) and "${image_uri}" not in image:
            changes.append(
                f"{at(task, 'image_uri')}: W&B's agent gave this pool every launch's command and run id; now "
                "only pools whose image is the launch's get them"
            )
    return changes


def _member(value: Any, name: str) -> Any:
    return value.get(name) if is_object(value) else None
