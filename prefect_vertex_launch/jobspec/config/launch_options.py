"""The `launch` section of a queue's configuration: how a launch goes into its job, beside what the job is.

command_pools      which pools get the launch's command, args and env
run_id_replicas    which replicas are the W&B run
fallbacks          what to try instead when capacity is short
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_list, shown
from prefect_vertex_launch.core.spelling import right_spelling
from prefect_vertex_launch.jobspec.config.worker_pools import MAX_POOLS

LAUNCH_KEYS: Final = ("command_pools", "run_id_replicas", "fallbacks")


class CommandPools(StrEnum):
    """The pools that get the launch's command, args and env, unless their indices are listed."""

    IMAGE = "image"
    ALL = "all"


class RunIdReplicas(StrEnum):
    """The replicas that get the variables which make a process the W&B run."""

    PRIMARY = "primary"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Fallback:
    """A whole configuration to try instead: the one as written with a fallback laid over it.

    `location` is its region, None for the block's. The rest is what a `QueueConfig` has.
    """

    location: str | None
    spec: dict[str, Any] = field(repr=False)
    run: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """A checked `launch` section; `command_pools` may be the indices of pools."""

    command_pools: CommandPools | tuple[int, ...] = CommandPools.IMAGE
    run_id_replicas: RunIdReplicas = RunIdReplicas.PRIMARY
    fallbacks: tuple[Fallback, ...] = ()


_Choice = TypeVar("_Choice", bound=StrEnum)


def read_command_pools(value: Any, path: str, findings: Findings) -> CommandPools | tuple[int, ...]:
    """Return which pools are meant; None is the default. Whether they are there is not looked at."""
    if not is_list(value):
        wanted = '"image", "all" or a list of pool indices'
        return _choice(CommandPools.IMAGE, value, path, wanted, findings)
    if not value:
        findings.refuse(
            path,
            "an empty list",
            "no pool would run the launch",
            'Name the pools, [0] say, or write "image".',
        )
    for position in (position for position, index in enumerate(value) if type(index) is not int):
        what = "the index of a pool"
        findings.expected(at(path, position), what, value[position], "Write a number, such as 0.")
    return tuple(sorted({index for index in value if type(index) is int}))


def read_run_id_replicas(value: Any, path: str, findings: Findings) -> RunIdReplicas:
    """Return which replicas are meant; None is the default."""
    return _choice(RunIdReplicas.PRIMARY, value, path, '"primary" or "all"', findings)


def check_command_pools(
    chosen: CommandPools | tuple[int, ...], pools: Sequence[Any], path: str, findings: Findings
) -> None:
    """Refuse the index of a pool that is not there or is empty."""
    if isinstance(chosen, CommandPools):
        return
    there = {index for index, pool in enumerate(pools) if pool}
    for index in chosen:
        if index not in there:
            is_empty = 0 <= index < len(pools)
            findings.refuse(
                path,
                f"pool {shown(index)} is {'empty' if is_empty else 'not there'}",
                "only a pool that is there can run the launch",
                f"Pools with something in them: {', '.join(map(str, sorted(there)[:MAX_POOLS]))}.",
            )


def _choice(default: _Choice, value: Any, path: str, wanted: str, findings: Findings) -> _Choice:
    """Return the member of the default's enum that `value` names."""
    members = {member.value: member for member in type(default)}
    if value is None:
        return default
    if isinstance(value, str) and value not in members:
        meant = right_spelling(value, members)
        fix = f"Did you mean {meant}?" if meant else f"Write {wanted}."
        findings.refuse(path, f"{shown(value)} is not {wanted}", fix=fix)
        return default
    if not isinstance(value, str):
        findings.expected(path, wanted, value)
        return default
    return members[value]
