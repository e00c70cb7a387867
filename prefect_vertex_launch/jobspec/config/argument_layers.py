"""The arguments of a queue's configuration from several sources, one laid over the other.

The block's come first, the item's over them, a fallback's over both: one top-level argument at a time,
whichever of `spec` and `run` a source has chosen for an argument that may stand in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_object
from prefect_vertex_launch.jobspec.config.arguments import (
    ARGUMENTS,
    EITHER_SECTION,
    KEPT_IN_RUN,
    refuse_unknown_argument,
)
from prefect_vertex_launch.jobspec.config.launch_options import LAUNCH_KEYS

SECTIONS: Final = ("spec", "run", "launch")


def _nothing() -> dict[str, dict[str, Any]]:
    return {section: {} for section in SECTIONS}


@dataclass(slots=True)
class ArgumentLayers:
    """What is given by section and name, and where each value was written, by `section.name`."""

    given: dict[str, dict[str, Any]] = field(default_factory=_nothing, repr=False)
    paths: dict[str, str] = field(default_factory=dict[str, str])

    def copy(self) -> ArgumentLayers:
        """Return layers that further ones can be laid over; the values are shared."""
        return ArgumentLayers({name: dict(values) for name, values in self.given.items()}, dict(self.paths))

    def lay(
        self,
        source: Any,
        where: str,
        findings: Findings,
        *,
        known: Sequence[str] = SECTIONS,
        owner: str = "a Vertex queue's configuration",
    ) -> None:
        """Lay a source's arguments over those that are there already.

        `source` is an object of sections, or None. `known` are the keys that `owner` has; a section
        that is not among them is refused.
        """
        if source is None:
            return
        if not is_object(source):
            findings.expected(where, "an object with spec and run", source)
            return
        self._set_aside(source)
        for section, values in source.items():
            path = at(where, section)
            if section not in SECTIONS or section not in known:
                _refuse_section(section, values, where, findings, known, owner)
            elif is_object(values):
                self._lay_section(section, values, path, findings)
            elif values is not None:
                findings.expected(path, "an object", values)

    def settle(self, findings: Findings) -> None:
        """Move what a job takes from `run` there; what is given in both is of the same source."""
        for name in KEPT_IN_RUN:
            in_spec, in_run = self.given["spec"].get(name), self.given["run"].get(name)
            if _is_unset(in_spec):
                self.given["spec"].pop(name, None)
            elif _is_unset(in_run) or in_run == in_spec:
                self.given["run"][name] = self.given["spec"].pop(name)
                self.paths[f"run.{name}"] = self.paths.pop(f"spec.{name}")
            else:
                findings.refuse(
                    self.paths[f"spec.{name}"],
                    f"another {name} than in run",
                    "a job has one",
                    "Keep one of them.",
                )

    def _lay_section(self, section: str, values: dict[str, Any], path: str, findings: Findings) -> None:
        for name, value in values.items():
            if section == "launch" and name not in LAUNCH_KEYS:
                findings.unknown_key(path, name, LAUNCH_KEYS, section)
            elif section != "launch" and name not in ARGUMENTS[section]:
                refuse_unknown_argument(section, name, path, findings)
            else:
                self.given[section][name] = value
                self.paths[f"{section}.{name}"] = at(path, name)

    def _set_aside(self, source: dict[str, Any]) -> None:
        """Remove what `source` gives as well, be it in the other section, so that its own word counts."""
        for name in EITHER_SECTION:
            if any(is_object(values := source.get(section)) and name in values for section in ARGUMENTS):
                for section in ARGUMENTS:
                    self.given[section].pop(name, None)
                    self.paths.pop(f"{section}.{name}", None)


def _refuse_section(
    section: str, values: Any, where: str, findings: Findings, known: Sequence[str], owner: str
) -> None:
    if section == "builder":
        if values:
            findings.refuse(
                at(where, section),
                "images are not built here",
                "builder says how to build one",
                "Remove it and launch an image, or a job that was made from an image.",
            )
        return
    names = {**ARGUMENTS, "launch": LAUNCH_KEYS}
    homes = [home for home in SECTIONS if home in known and section in names[home]]
    if homes:
        findings.refuse(at(where, section), "in the wrong place", fix=f"Move it to {homes[0]}.{section}.")
    else:
        findings.unknown_key(where, section, known, owner)


def _is_unset(value: Any) -> bool:
    """Tell whether a value says nothing: in the SDK an empty text is the same as none."""
    return value is None or value in ("", [])
