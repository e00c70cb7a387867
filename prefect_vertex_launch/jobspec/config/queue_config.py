"""`spec`, `run` and `launch` of a Vertex queue, checked before any call.

`spec` holds the arguments of `aiplatform.CustomJob(…)`, `run` those of `CustomJob.run(…)`; service
account, persistent resource and the fields that the SDK does not reach may stand in either. `launch`
says how a launch goes into its job. An item's arguments win over those of the queue's block, one
top-level argument at a time, whichever of the two sections each has chosen. Nothing is dropped in
silence: what cannot be honoured is refused with the reason, what has no effect is a warning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_vertex_launch.core.errors import InvalidQueueConfig, Problem
from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import json_problems
from prefect_vertex_launch.jobspec.config.argument_layers import ArgumentLayers
from prefect_vertex_launch.jobspec.config.config_check import QueueConfig, check_config
from prefect_vertex_launch.jobspec.config.fallbacks import read_fallbacks
from prefect_vertex_launch.jobspec.config.launch_options import (
    LaunchOptions,
    check_command_pools,
    read_command_pools,
    read_run_id_replicas,
)

__all__ = ["QueueConfig", "QueueDefaults", "parse_queue_config"]

_BLOCK: Final = "block"


@dataclass(frozen=True, slots=True)
class QueueDefaults:
    """What the queue's block adds to every item: defaults for the sections and the staging bucket."""

    spec: Mapping[str, Any] = field(repr=False)
    run: Mapping[str, Any] = field(repr=False)
    staging_bucket: str | None = None
    launch: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)


def parse_queue_config(
    resource_args: object | None,
    *,
    defaults: QueueDefaults | None = None,
    where: str = "resource_args.vertex",
) -> QueueConfig:
    """Check the arguments of an item together with the defaults of its block.

    Args:
        resource_args: The item's `{"spec": …, "run": …, "launch": …}`, any JSON; None if it has none.
        defaults: The block's defaults; their paths start with `block`.
        where: The path of `resource_args`.

    Raises InvalidQueueConfig with every problem, those of the fallbacks among them. A number, enum or
    flag that is exactly one macro passes here and is checked again when the macros have been filled in.
    """
    defaults = defaults or QueueDefaults(spec={}, run={})
    problems = [*_not_json(resource_args, where), *_not_json(_as_json(defaults), _BLOCK)]
    if problems:
        raise InvalidQueueConfig(problems)
    findings = Findings()
    with findings.refusing(InvalidQueueConfig):
        return _checked(resource_args, defaults, findings, where)


def _checked(
    resource_args: object | None, defaults: QueueDefaults, findings: Findings, where: str
) -> QueueConfig:
    """Return the configuration; problems and warnings go to `findings`."""
    layers = ArgumentLayers()
    layers.lay(_as_json(defaults), _BLOCK, findings)
    layers.lay(resource_args, where, findings)
    if layers.given["spec"].get("staging_bucket") is None and defaults.staging_bucket:
        layers.given["spec"]["staging_bucket"] = defaults.staging_bucket
        layers.paths["spec.staging_bucket"] = f"{_BLOCK}.staging_bucket"
    layers.settle(findings)
    for name in ("worker_pool_specs", "staging_bucket"):
        layers.paths.setdefault(f"spec.{name}", f"{where}.spec.{name}")
    spec, run = layers.given["spec"], layers.given["run"]
    config = check_config(spec, run, layers.paths, findings, macros_pending=True)
    config = _with_launch(config, layers, findings, where)
    return dataclasses.replace(config, warnings=findings.warnings)


def _with_launch(config: QueueConfig, layers: ArgumentLayers, findings: Findings, where: str) -> QueueConfig:
    """Return the configuration with the `launch` section read."""
    launch = layers.given["launch"]
    pools_path, fallbacks_path = (
        config.path_of("launch", "command_pools"),
        config.path_of("launch", "fallbacks"),
    )
    command_pools = read_command_pools(launch.get("command_pools"), pools_path, findings)
    if pools := config.spec.get("worker_pool_specs"):
        check_command_pools(command_pools, pools, pools_path, findings)
    replicas_path = config.path_of("launch", "run_id_replicas")
    options = LaunchOptions(
        command_pools, read_run_id_replicas(launch.get("run_id_replicas"), replicas_path, findings)
    )
    config = dataclasses.replace(config, launch=options)
    # A fallback of the block may be what an item asks for at once, which is no mistake of either.
    may_be_idle = where != _BLOCK and fallbacks_path.startswith(f"{_BLOCK}.")
    fallbacks = read_fallbacks(
        launch.get("fallbacks"), fallbacks_path, layers, config, findings, may_be_idle=may_be_idle
    )
    return dataclasses.replace(config, launch=dataclasses.replace(options, fallbacks=fallbacks))


def _as_json(defaults: QueueDefaults) -> dict[str, Any]:
    return {"spec": dict(defaults.spec), "run": dict(defaults.run), "launch": dict(defaults.launch)}


def _not_json(value: object, where: str) -> tuple[Problem, ...]:
    return json_problems(value, where=where, root=where)
