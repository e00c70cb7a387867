"""The locks of a queue's block, and the check of a finished job against them.

Only the block is trusted: whatever comes from W&B, also the queue's configuration, may have been written
by the person who launches. So each lock accepts what it lists and what the block itself says
(own_words.py).

    images            of every pool, containers and executors of Python packages
    entry points      of the launch, its own or the one of its W&B job
    commands          of every container, before anything is put in front of it; modules and packages
    service accounts, networks, machine types

A command is matched as its words in the form of `shlex.join`, a Python package as its module and its
package URIs. `*` in a pattern stands for any text. A container without a command runs its image's own
program, or its `args` where the image has no entry point: there the args are matched as the command.

A locked command is worth nothing if something else decides what it does. So where commands are locked,
these are refused as well, unless the block itself says so: code of a W&B job, environment variables other
than the launch's own, variables that Vertex AI would fill into words, mounted file systems, and shells from
the console.

In secure mode a field that none of these knows is locked as well (known_fields.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import json_format

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, shown
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.jobspec.known_fields import new_fields
from prefect_vertex_launch.jobspec.own_words import MOUNTS, OwnWords, networks_of, words_of
from prefect_vertex_launch.jobspec.patterns import command_line, matches_with_gaps

_WHY: Final = "the queue's block locks it"
_ANY: Final = "*"
_MAX_SHOWN: Final = 8
# Source: the grammar of https://pkg.go.dev/github.com/distribution/reference.
_HOST: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_STEP: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE: Final = re.compile(
    rf"(?P<name>(?:{_HOST}(?:\.{_HOST})*(?::[0-9]+)?/)?{_STEP}(?:/{_STEP})*)"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?P<digest>@[A-Za-z0-9+._-]+:[0-9a-fA-F]{32,})?"
)

# What Vertex AI fills in; `$$(NAME)` stands for the text itself.
_EXPANSION: Final = re.compile(r"(?<!\$)(?:\$\$)*\$\(([^()$]+)\)")

PathOf = Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class Locks:
    """Six sets of patterns: None is not locked, () is locked to what the queue's block itself says.

    In secure mode fields that no lock knows are locked, too.
    """

    images: tuple[str, ...] | None = None
    entry_points: tuple[str, ...] | None = None
    commands: tuple[str, ...] | None = None
    service_accounts: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    machine_types: tuple[str, ...] | None = None
    secure_mode: bool = False

    @classmethod
    def of(
        cls,
        *,
        secure_mode: bool,
        images: Sequence[str] | None = None,
        entry_points: Sequence[str] | None = None,
        commands: Sequence[str] | None = None,
        service_accounts: Sequence[str] | None = None,
        networks: Sequence[str] | None = None,
        machine_types: Sequence[str] | None = None,
    ) -> Locks:
        """Return the locks of a block; with `secure_mode` nothing is left unlocked."""

        def lock(patterns: Sequence[str] | None) -> tuple[str, ...] | None:
            if patterns is None:
                return () if secure_mode else None
            return tuple(pattern.strip() for pattern in patterns)

        return cls(
            images=lock(images),
            entry_points=lock(entry_points),
            commands=lock(commands),
            service_accounts=lock(service_accounts),
            networks=lock(networks),
            machine_types=lock(machine_types),
            secure_mode=secure_mode,
        )


@dataclass(frozen=True, slots=True)
class LaunchProgram:
    """What a launch brings to run.

    Attributes:
        entry_point: The launch's own entry point.
        job_entry_point: The entry point of its W&B job.
        has_code: Whether code comes with its W&B job.
        variables: The variables that the launch has set, by the index of the pool.
        open_variables: Names of those that may have any value where the launch runs.
    """

    entry_point: tuple[str, ...] = ()
    job_entry_point: tuple[str, ...] = ()
    has_code: bool = False
    open_variables: frozenset[str] = frozenset()
    variables: Mapping[int, Mapping[str, str]] = field(default_factory=dict[int, Mapping[str, str]])


def check_locks(
    job: CustomJob,
    program: LaunchProgram,
    locks: Locks,
    own: OwnWords,
    *,
    path_of: PathOf,
    findings: Findings,
) -> None:
    """Refuse whatever of a finished job the locks do not allow.

    Args:
        job: The job with everything filled in, and its commands as they were written.
        program: What the launch brings.
        locks: What the block locks.
        own: What the block itself says.
        path_of: Returns where an argument was written, by its section and name.
        findings: Takes the problems.
    """
    if locks != Locks():
        _Check(program, locks, own, path_of, findings).job(_json_of(job))


def _json_of(job: CustomJob) -> dict[str, Any]:
    kind: Any = CustomJob
    return json_format.MessageToDict(kind.pb(job), preserving_proto_field_name=True)


class _Check:
    """One check of a job against the locks."""

    def __init__(
        self, program: LaunchProgram, locks: Locks, own: OwnWords, path_of: PathOf, findings: Findings
    ) -> None:
        self._program = program
        self._locks = locks
        self._own = own
        self._path_of = path_of
        self._findings = findings

    def job(self, job: Mapping[str, Any]) -> None:
        spec: dict[str, Any] = job.get("job_spec", {})
        pools: list[dict[str, Any]] = spec.get("worker_pool_specs", [])
        self._entry_points(pools)
        self._code()
        for index, pool in enumerate(pools):
            variables = self._program.variables.get(index)
            self._pool(pool, variables, at(self._path_of("spec", "worker_pool_specs"), index))
        self._accounts_and_networks(spec)
        self._machines_from_elsewhere(spec)
        self._shells(spec)
        self._new_fields(spec)

    def _refuse(self, where: str, what: str, allowed: Iterable[str], title: str) -> None:
        """Add a problem; `title` is the field of the block that would allow it."""
        listed = sorted({*allowed} - {""})
        more = ", …" if len(listed) > _MAX_SHOWN else ""
        advice = f"Use one of {', '.join(listed[:_MAX_SHOWN])}{more}, or ask" if listed else "Ask"
        fix = f"{advice} the queue's owner to allow it under {title}."
        self._findings.refuse(where, what, _WHY, fix)

    def _hold(
        self, text: str, where: str, patterns: tuple[str, ...] | None, own: Collection[str], noun: str
    ) -> None:
        """Refuse a text that neither the patterns nor the block allow; no text is always allowed."""
        if patterns is not None and text and text not in own and not _matches(text, patterns):
            self._refuse(
                where, f"{shown(text)} is not an allowed {noun}", {*patterns, *own}, f"Allowed {noun}s"
            )

    @property
    def _locked_commands(self) -> tuple[str, ...] | None:
        commands = self._locks.commands
        return None if commands is None or _ANY in commands else commands

    def _entry_points(self, pools: Sequence[Mapping[str, Any]]) -> None:
        words, where = self._program.entry_point, "overrides.entry_point"
        if not words:
            words, where = self._program.job_entry_point, "job"
            # The queue's command, if it has one, is used instead of the job's entry point.
            commands = [tuple(pool.get("container_spec", {}).get("command", ())) for pool in pools]
            if words not in commands:
                return
        patterns = self._locks.entry_points
        if not words or patterns is None or self._own.has_command(words):
            return
        patterns = (*patterns, *(self._locks.commands or ()))
        own = map(command_line, self._own.commands)
        self._hold(command_line(words), where, patterns, {*own}, "entry point")

    def _code(self) -> None:
        if self._program.has_code and self._locked_commands is not None:
            self._findings.refuse(
                "job",
                "brings code along that is in no image",
                "the queue's block locks commands, and code decides what a command does",
                "Build an image with the code in it, or ask the queue's owner to allow the command *.",
            )

    def _pool(self, pool: Mapping[str, Any], variables: Mapping[str, str] | None, where: str) -> None:
        """Check one pool; `variables` are what the launch has set in it, None if it does not run there."""
        machine: Mapping[str, Any] = pool.get("machine_spec", {})
        self._hold(
            machine.get("machine_type", ""),
            at(at(where, "machine_spec"), "machine_type"),
            self._locks.machine_types,
            self._own.machine_types,
            "machine type",
        )
        if container := pool.get("container_spec"):
            self._image(container.get("image_uri", ""), at(at(where, "container_spec"), "image_uri"))
            self._command(container, variables, at(where, "container_spec"))
        if package := pool.get("python_package_spec"):
            path = at(where, "python_package_spec")
            self._image(package.get("executor_image_uri", ""), at(path, "executor_image_uri"))
            self._command(package, variables, path)
        for name in MOUNTS:
            self._mounts(pool.get(name, ()), at(where, name))

    def _image(self, image: str, where: str) -> None:
        patterns, own = self._locks.images, self._own.images
        if patterns is None or image in own or image in patterns or _ANY in patterns:
            return
        reference = _IMAGE.fullmatch(image)
        if reference is None:
            self._refuse(where, f"{shown(image)} is not a plain image reference", patterns, "Allowed images")
            return
        # Where there is a digest, whoever pulls the image ignores the tag.
        digest = reference["digest"]
        text = f"{reference['name']}{digest}" if digest else image
        if not _matches(text, patterns):
            self._refuse(
                where, f"{shown(image)} is not an allowed image", {*patterns, *own}, "Allowed images"
            )

    def _command(self, task: Mapping[str, Any], variables: Mapping[str, str] | None, where: str) -> None:
        patterns, words = self._locked_commands, words_of(task)
        if patterns is None:
            return
        self._variables(task, variables, at(where, "env"))
        self._expansions(task, where)
        launched = self._program.entry_point or self._program.job_entry_point
        if task.get("command") and words == launched and self._locks.entry_points is not None:
            return  # _entry_points has checked it
        line = command_line(words)
        if self._own.has_command(words) or _matches(line, patterns):
            return
        name, what = "command", f"{shown(line)} is not an allowed command"
        if "python_module" in task:
            name = "python_module"
        elif not words:
            what = "missing, so that the image's own program would run"
        elif not task.get("command"):
            name, what = "args", f"{what}, and is one where the image has no entry point"
        own = map(command_line, self._own.commands)
        self._refuse(at(where, name), what, {*patterns, *own}, "Allowed commands")

    def _expansions(self, task: Mapping[str, Any], where: str) -> None:
        """Refuse `$(NAME)` in words that are not the block's own: Vertex AI would fill the variable in."""
        names = {variable.get("name") for variable in task.get("env", ())}
        for part in ("command", "args"):
            for index, word in enumerate(task.get(part, ())):
                found = "$(" in word and [name for name in _EXPANSION.findall(word) if name in names]
                if found and not self._own.has_word(word):
                    self._findings.refuse(
                        at(at(where, part), index),
                        f"$({found[0]}) may not be used by a launch",
                        "the queue's block locks commands, and a variable's value may be a secret",
                        f"Write $$({found[0]}) for the text itself, or read the variable in the program.",
                    )

    def _mounts(self, mounts: Sequence[Mapping[str, Any]], where: str) -> None:
        for index, mount in enumerate(mounts):
            if self._locked_commands is not None and mount not in self._own.mounts:
                self._findings.refuse(
                    at(where, index),
                    f"{shown(str(mount.get('mount_point', '')))} may not be mounted by a launch",
                    "the queue's block locks commands, and files decide what a command does",
                    "Remove it, or ask the queue's owner to mount it in the block's spec.",
                )

    def _variables(self, task: Mapping[str, Any], variables: Mapping[str, str] | None, where: str) -> None:
        for index, variable in enumerate(task.get("env", ())):
            name, value = variable.get("name", ""), variable.get("value", "")
            if variables is not None and (
                name in self._program.open_variables or variables.get(name) == value
            ):
                continue
            if not self._own.has_variable(name, value):
                self._findings.refuse(
                    at(where, index),
                    f"{shown(name)} may not be set by a launch",
                    "the queue's block locks commands, and variables can change what a command does",
                    "Pass it as an argument or in the run's config, or ask the queue's owner to set it in "
                    "the block's spec.",
                )

    def _accounts_and_networks(self, spec: Mapping[str, Any]) -> None:
        self._hold(
            spec.get("service_account", ""),
            self._path_of("run", "service_account"),
            self._locks.service_accounts,
            self._own.service_accounts,
            "service account",
        )
        networks, own = self._locks.networks, self._own.networks
        self._hold(spec.get("network", ""), self._path_of("run", "network"), networks, own, "network")
        where = self._path_of("run", "reserved_ip_ranges")
        for index, ip_range in enumerate(spec.get("reserved_ip_ranges", ())):
            self._hold(ip_range, at(where, index), networks, self._own.ip_ranges, "network")
        for network in networks_of(spec.get("psc_interface_config")):
            where = at(self._path_of("run", "psc_interface_config"), "network_attachment")
            self._hold(network, where, networks, own, "network")

    def _machines_from_elsewhere(self, spec: Mapping[str, Any]) -> None:
        resource: str = spec.get("persistent_resource_id", "")
        is_locked = self._locks.machine_types is not None and _ANY not in self._locks.machine_types
        if resource and is_locked and resource not in self._own.persistent_resources:
            self._findings.refuse(
                self._path_of("run", "persistent_resource_id"),
                f"{shown(resource)} may not be chosen by a launch",
                "the queue's block locks machine types, and a persistent resource brings its own machines",
                "Remove it, or ask the queue's owner to set it in the block.",
            )

    def _shells(self, spec: Mapping[str, Any]) -> None:
        for name in ("enable_web_access", "enable_dashboard_access"):
            if spec.get(name) and self._locked_commands is not None and name not in self._own.flags:
                self._findings.refuse(
                    self._path_of("run", name),
                    "may not be switched on by a launch",
                    "the queue's block locks commands, and it lets people run others in the container",
                    "Remove it, or ask the queue's owner to switch it on in the block's run.",
                )

    def _new_fields(self, spec: Mapping[str, Any]) -> None:
        if not self._locks.secure_mode:
            return
        # Of these Google's library says which fields there are; all others are listed in our code.
        names = ("worker_pool_specs", "psc_interface_config")
        paths = {name: self._path_of("run" if name.startswith("psc") else "spec", name) for name in names}
        for leaf in new_fields(spec, paths):
            if not self._own.has_leaf(leaf):
                self._findings.refuse(
                    leaf.path,
                    "may not be set by a launch",
                    "in secure mode no launch sets what this version has no lock for",
                    "Remove it, or ask the queue's owner to set it in the block.",
                )


def _matches(text: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of the patterns is the whole text; `*` in a pattern stands for any text."""
    return any(matches_with_gaps(pattern.split(_ANY), text) for pattern in patterns)
