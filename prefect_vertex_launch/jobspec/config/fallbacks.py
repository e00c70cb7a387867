"""The fallbacks of a queue's configuration: each is laid over what is written, and checked as a whole."""

from __future__ import annotations

from typing import Any, Final

from prefect_vertex_launch.core.findings import Findings, TooManyProblems
from prefect_vertex_launch.core.json_value import at, is_list, is_object, shown
from prefect_vertex_launch.core.vertex_types import MachineSpec
from prefect_vertex_launch.jobspec.config.argument_layers import ArgumentLayers
from prefect_vertex_launch.jobspec.config.config_check import QueueConfig, check_config, is_persistent
from prefect_vertex_launch.jobspec.config.field_walk import FieldWalk, descriptor_of
from prefect_vertex_launch.jobspec.config.launch_options import Fallback, check_command_pools
from prefect_vertex_launch.jobspec.config.macros import has_macro
from prefect_vertex_launch.jobspec.config.worker_pools import check_machine_spec

MAX_FALLBACKS: Final = 10
_KEYS: Final = ("location", "machine_spec", "spec", "run")
_MACHINE: Final = descriptor_of(MachineSpec)
_NO_FALLBACK: Final = Fallback(None, {}, {})


def read_fallbacks(
    value: Any, path: str, layers: ArgumentLayers, base: QueueConfig, findings: Findings, *, may_be_idle: bool
) -> tuple[Fallback, ...]:
    """Return the fallbacks in their order; problems and warnings go to `findings`.

    Args:
        value: What is written under `launch.fallbacks`, None for nothing.
        path: Where it stands.
        layers: The arguments that each fallback is laid over.
        base: The same, checked.
        findings: Holds what has been found in `layers` already; that is not noted again.
        may_be_idle: Whether a fallback that changes nothing is only a warning.
    """
    if value is None:
        return ()
    if not is_list(value):
        findings.expected(path, "a list of fallbacks", value, "Put the fallback into a list: [{…}].")
        return ()
    if len(value) > MAX_FALLBACKS:
        findings.refuse(
            path,
            f"{len(value)} fallbacks",
            f"at most {MAX_FALLBACKS} are tried",
            "Keep those that are most likely to have capacity.",
        )
        return ()
    known = frozenset(map(str, findings.problems))
    return tuple(
        _Fallback(entry, at(path, index), layers, base, findings, known).read(may_be_idle=may_be_idle)
        for index, entry in enumerate(value)
    )


class _Fallback:
    """One fallback being read; `known` are the problems of what it is laid over."""

    def __init__(
        self,
        entry: Any,
        path: str,
        layers: ArgumentLayers,
        base: QueueConfig,
        findings: Findings,
        known: frozenset[str],
    ) -> None:
        self._entry: dict[str, Any] = entry if is_object(entry) else {}
        self._path = path
        self._layers = layers.copy()
        self._base = base
        self._findings = findings
        self._known = known
        self._replaced: tuple[str, ...] = ()
        # What is missing in the base because it has been refused there is not missing here.
        self._own = findings.successor()
        if not is_object(entry):
            self._own.expected(path, f"an object with {', '.join(_KEYS)}", entry)

    def read(self, *, may_be_idle: bool) -> Fallback:
        try:
            fallback = self._checked()
        except TooManyProblems:
            fallback = None
        self._pass_on()
        if fallback is None:
            # What was found first may be wrong without the fallback, too, and is not passed on.
            self._findings.refuse(self._path, "has too many problems", fix="Correct the others first.")
            return _NO_FALLBACK
        is_machine_laid = bool(self._replaced) or self._entry.get("machine_spec") is None
        if self._is_sound() and is_machine_laid and _said(fallback) == _said(self._base):
            self._note_idle(may_be_idle=may_be_idle)
        return fallback

    def _checked(self) -> Fallback:
        """Return the configuration with the fallback laid over it."""
        arguments = {
            key: value for key, value in self._entry.items() if key not in {"location", "machine_spec"}
        }
        self._layers.lay(arguments, self._path, self._own, known=_KEYS, owner="a fallback")
        self._layers.settle(self._own)
        location = self._lay_location()
        self._replaced = self._lay_machine()
        paths = self._layers.paths
        spec, run = self._layers.given["spec"], self._layers.given["run"]
        config = check_config(spec, run, paths, self._own, macros_pending=True)
        pools = config.spec.get("worker_pool_specs", [])
        if pools:
            where = self._base.path_of("launch", "command_pools")
            check_command_pools(self._base.launch.command_pools, pools, where, self._own)
        return Fallback(location, config.spec, config.run, config.warnings, config.paths)

    def _lay_location(self) -> str | None:
        """Lay the region over that of the SDK's argument, with which it is checked."""
        name, where = "location", at(self._path, "location")
        inner: Any = self._entry.get("spec")
        if is_object(inner) and inner.get(name):
            self._own.refuse(
                at(at(self._path, "spec"), name), "in the wrong place", fix=f"Move it to {where}."
            )
        location = self._entry.get(name)
        if location is None or location == "":
            return None
        if has_macro(location):
            self._own.refuse(
                where,
                f"{shown(location)} has a macro in it",
                "the region is chosen before macros are filled in",
                "Write the region, such as us-central1.",
            )
        self._layers.given["spec"][name] = location
        self._layers.paths["spec.location"] = where
        return location if isinstance(location, str) else None

    def _lay_machine(self) -> tuple[str, ...]:
        """Put the machine into the pools that have the primary pool's; return where it stands now."""
        machine, where = self._entry.get("machine_spec"), at(self._path, "machine_spec")
        if machine is None:
            return ()
        clean = FieldWalk(self._own, macros_pending=True).message(_MACHINE, machine, where)
        check_machine_spec(
            {"machine_spec": clean}, self._path, persistent=is_persistent(self._base), findings=self._own
        )
        inner: Any = self._entry.get("spec")
        if is_object(inner) and inner.get("worker_pool_specs") is not None:
            self._own.refuse(
                where,
                "set beside spec.worker_pool_specs",
                "a machine_spec goes into the pools that are there",
                "Write the machine into those pools and remove it here.",
            )
            return ()
        pools: list[Any] = self._base.spec.get("worker_pool_specs", [])
        given: Any = self._layers.given["spec"].get("worker_pool_specs")
        if not pools or not pools[0] or not is_list(given):
            return ()
        primary = pools[0].get("machine_spec")
        same = {index for index, pool in enumerate(pools) if pool and pool.get("machine_spec") == primary}
        self._layers.given["spec"]["worker_pool_specs"] = [
            {**pool, "machine_spec": clean} if index in same else pool for index, pool in enumerate(given)
        ]
        path = self._base.path_of("spec", "worker_pool_specs")
        return tuple(at(at(path, index), "machine_spec") for index in sorted(same))

    def _pass_on(self) -> None:
        """Tell what was found: at the fallback's own paths, or else that it comes with the fallback."""
        replaced = self._replaced  # the fallback's machine, which has been checked where it was written
        for problem in self._own.problems:
            if _is_at(problem.where, (self._path,)):
                self._findings.refuse(problem.where, problem.what, problem.why, problem.fix)
            elif str(problem) not in self._known and not _is_at(problem.where, replaced):
                what = f"with it, {problem.where}: {problem.what}"
                self._findings.refuse(self._path, what, problem.why, problem.fix)
        for where, what in self._own.warned:
            if _is_at(where, (self._path,)):
                self._findings.warn(where, what)
            elif f"{where}: {what}" not in self._base.warnings and not _is_at(where, replaced):
                self._findings.warn(self._path, f"with it, {where}: {what}")

    def _is_sound(self) -> bool:
        return all(str(problem) in self._known for problem in self._own.problems)

    def _note_idle(self, *, may_be_idle: bool) -> None:
        if may_be_idle:
            self._findings.warn(self._path, "changes nothing in this launch; the same would be tried again")
        else:
            self._findings.refuse(
                self._path,
                "changes nothing",
                "the same would be tried again",
                "Set another location or machine_spec, or arguments of spec or run; or remove it.",
            )


def _is_at(where: str, roots: tuple[str, ...]) -> bool:
    return any(where == root or where.startswith((f"{root}.", f"{root}[")) for root in roots)


def _said(config: QueueConfig | Fallback) -> list[dict[str, Any]]:
    """Return the arguments that say something: an empty text is the same as none."""
    return [
        {name: value for name, value in arguments.items() if value not in ("", [])}
        for arguments in (config.spec, config.run)
    ]
