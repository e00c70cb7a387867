"""What a launch changes in its job: the `overrides` of a run spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_empty, is_list, is_object

_WHERE: Final = "overrides"
_WORD_TYPES: Final = (str, int, float)
_KNOWN: Final = frozenset({
    "args", "artifacts", "dockerfile", "entry_point", "files", "run_config", "working_dir",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a launch changes in its job; `working_dir` is a directory inside of the job's code."""

    args: tuple[str, ...] = ()
    entry_point: tuple[str, ...] = ()
    run_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    artifacts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    files: Mapping[str, Any] = field(default_factory=dict[str, Any])
    working_dir: str | None = None


def read_overrides(overrides: object, *, is_of_job: bool, findings: Findings) -> Overrides:
    """Return what a run spec overrides.

    Args:
        overrides: Any JSON; None if the run spec has none.
        is_of_job: Whether the run spec names a W&B job, which may bring code along.
        findings: Takes the problems.
    """
    if overrides is None:
        return Overrides()
    if not is_object(overrides):
        findings.expected(_WHERE, "an object", overrides)
        return Overrides()
    for key in (key for key in overrides if key not in _KNOWN):
        findings.unknown_key(_WHERE, key, _KNOWN, "overrides")
    if not is_empty(overrides.get("dockerfile")):
        findings.refuse(
            at(_WHERE, "dockerfile"),
            "cannot be used",
            "images are not built here",
            "Launch an image, or a job that was made from an image.",
        )
    return Overrides(
        args=_words(overrides, "args", findings),
        entry_point=_words(overrides, "entry_point", findings),
        run_config=_mapping(overrides, "run_config", findings),
        artifacts=_mapping(overrides, "artifacts", findings),
        files=_mapping(overrides, "files", findings),
        working_dir=_working_dir(overrides.get("working_dir"), is_of_job=is_of_job, findings=findings),
    )


def _working_dir(value: object, *, is_of_job: bool, findings: Findings) -> str | None:
    path = at(_WHERE, "working_dir")
    if is_empty(value):
        return None
    if not isinstance(value, str):
        findings.expected(path, "a string", value)
        return None
    if not is_of_job:
        findings.refuse(
            path,
            "cannot be used",
            "an image has its own, and only the code of a job can be run in another",
            "Remove it, or set the directory in the image.",
        )
    return value


def _words(overrides: dict[str, Any], key: str, findings: Findings) -> tuple[str, ...]:
    """Return a list of strings; numbers become their JSON text."""
    words, path = overrides.get(key), at(_WHERE, key)
    if words is None:
        return ()
    if not is_list(words):
        fix = "Write one list item per word." if isinstance(words, str) else ""
        findings.expected(path, "a list of strings", words, fix)
        return ()
    # There may be a quarter of a million.
    for index in [index for index, word in enumerate(words) if type(word) not in _WORD_TYPES]:
        is_flag = isinstance(words[index], bool)
        fix = "Put it into quotes." if is_flag else ""
        findings.expected(at(path, index), "a string or a number", words[index], fix)
    return tuple([word if type(word) is str else str(word) for word in words])


def _mapping(overrides: dict[str, Any], key: str, findings: Findings) -> Mapping[str, Any]:
    value = overrides.get(key)
    if value is None:
        return {}
    if not is_object(value):
        findings.expected(at(_WHERE, key), "an object", value)
        return {}
    return value
