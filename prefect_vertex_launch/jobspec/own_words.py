"""What a queue's block itself says, which every lock of the block accepts.

It is collected from the block's `spec`, `run` and fallbacks. Where a value has one of the launch's macros
in it, the launch decides what it is: such a value is not the block's own. Commands and variables are the
exception, because what a macro brings into them can be checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_vertex_launch.core.json_value import is_list, is_object
from prefect_vertex_launch.jobspec.config.macros import LAUNCH_MACROS, FilledSize, fill_macros
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults
from prefect_vertex_launch.jobspec.config.worker_pools import TASKS
from prefect_vertex_launch.jobspec.known_fields import Leaf, new_fields
from prefect_vertex_launch.jobspec.patterns import matches_with_gaps

# The file systems that a pool mounts.
MOUNTS: Final = ("nfs_mounts", "lustre_mounts")

_LAUNCH_MACRO: Final = re.compile(r"\$\{(?:" + "|".join(LAUNCH_MACROS) + r")\}")
# What a launch may bring into a command of the block's by a macro: nothing that a shell would act on.
_PLAIN: Final = re.compile("[A-Za-z0-9_.,:=/@+-]*")


@dataclass(slots=True)
class OwnWords:
    """What a block says, by what it can be locked to.

    Commands, by their words, and variables may have the launch's macros in them.
    """

    images: set[str] = field(default_factory=set[str])
    commands: set[tuple[str, ...]] = field(default_factory=set[tuple[str, ...]])
    service_accounts: set[str] = field(default_factory=set[str])
    networks: set[str] = field(default_factory=set[str])
    machine_types: set[str] = field(default_factory=set[str])
    variables: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    persistent_resources: set[str] = field(default_factory=set[str])
    flags: set[str] = field(default_factory=set[str])
    ip_ranges: set[str] = field(default_factory=set[str])
    mounts: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    words: set[str] = field(default_factory=set[str])
    leaves: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    def has_command(self, words: Sequence[str]) -> bool:
        """Tell whether the block says this command; what its macros brought in must be plain."""
        return any(
            len(words) == len(command)
            and all(
                matches_with_gaps(_LAUNCH_MACRO.split(given), word, may_fill=_is_plain)
                for given, word in zip(command, words, strict=True)
            )
            for command in self.commands
        )

    def has_word(self, word: str) -> bool:
        """Tell whether the block says this word of a command or its arguments, with nothing brought in."""
        return word in self.words

    def has_leaf(self, leaf: Leaf) -> bool:
        """Tell whether the block says this value of a field that no lock knows."""
        return (leaf.field, str(leaf.value)) in self.leaves

    def has_variable(self, name: str, value: str) -> bool:
        """Tell whether the block sets this variable; its macros may have brought in anything."""
        return any(
            own == name and matches_with_gaps(_LAUNCH_MACRO.split(text), value)
            for own, text in self.variables
        )


def own_words(defaults: QueueDefaults, macros: Mapping[str, str | None]) -> OwnWords:
    """Return what a block says; `macros` are those it allows, filled in as they are in a job."""
    values = {name: text for name, text in macros.items() if text is not None and name not in LAUNCH_MACROS}
    own = OwnWords()
    fallbacks: Any = defaults.launch.get("fallbacks")
    sources: list[Any] = [
        {"spec": dict(defaults.spec), "run": dict(defaults.run)},
        *(fallbacks if is_list(fallbacks) else ()),
    ]
    for source in fill_macros(sources, values, "block", lambda _path, _name: None, size=FilledSize()):
        for section in ("spec", "run"):
            if is_object(source) and is_object(arguments := source.get(section)):
                _collect(arguments, own)
    return own


def networks_of(psc: Any) -> Iterator[str]:
    """Yield the network attachment of a `psc_interface_config`, and the networks whose names it resolves."""
    if not is_object(psc):
        return
    yield from _texts(psc.get("network_attachment"))
    for peering in psc.get("dns_peering_configs") or ():
        yield f"projects/{peering.get('target_project')}/global/networks/{peering.get('target_network')}"


def words_of(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a container or a Python package runs, nothing for its image's own program."""
    if "python_module" in task:
        return (task["python_module"], *(task.get("package_uris") or ()))
    return tuple(task.get("command") or task.get("args") or ())


def _collect(arguments: Mapping[str, Any], own: OwnWords) -> None:
    """Add what a section of the block says."""
    for name, words in (
        ("service_account", own.service_accounts),
        ("network", own.networks),
        ("persistent_resource_id", own.persistent_resources),
    ):
        words.update(_texts(arguments.get(name)))
    for leaf in new_fields(arguments, {name: name for name in arguments}):
        own.leaves.update((leaf.field, text) for text in _texts(str(leaf.value)))
    own.flags.update(name for name, value in arguments.items() if value is True)
    own.networks.update(networks_of(arguments.get("psc_interface_config")))
    for ip_range in arguments.get("reserved_ip_ranges") or ():
        own.ip_ranges.update(_texts(ip_range))
    pools: Any = arguments.get("worker_pool_specs")
    for pool in filter(is_object, pools if is_list(pools) else ()):
        for name in MOUNTS:
            mounts: Any = pool.get(name)
            own.mounts += [mount for mount in mounts or () if is_object(mount) and _is_own(mount.values())]
        machine: Any = pool.get("machine_spec")
        own.machine_types.update(_texts(machine.get("machine_type") if is_object(machine) else None))
        for task_name in TASKS:
            if is_object(task := pool.get(task_name)):
                _collect_task(task, own)


def _collect_task(task: Mapping[str, Any], own: OwnWords) -> None:
    own.images.update(_texts(task.get("image_uri")), _texts(task.get("executor_image_uri")))
    own.commands.add(words_of(task))
    for word in (*(task.get("command") or ()), *(task.get("args") or ())):
        own.words.update(_texts(word))
    own.variables.update((item["name"], item.get("value") or "") for item in task.get("env") or ())


def _is_own(values: Iterable[Any]) -> bool:
    return all(any(_texts(value)) for value in values)


def _texts(value: Any) -> Iterator[str]:
    """Yield a text of the block, unless the launch decides what it is."""
    if isinstance(value, str) and value and not _LAUNCH_MACRO.search(value):
        yield value


def _is_plain(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None
