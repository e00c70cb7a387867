"""`${name}` macros of a queue's configuration: which are known, and how they are filled in.

W&B's agent fills macros from its whole environment; here only the launch's own six names and those
that the queue's block allows are known. Filling is one pass: what a macro brings in is never
expanded again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from prefect_vertex_launch.core.errors import InvalidQueueConfig, Problem
from prefect_vertex_launch.core.json_value import MAX_JOB_BYTES, MAX_PROBLEMS, at, is_list, is_object

LAUNCH_MACROS: Final = ("image_uri", "project_name", "entity_name", "run_id", "run_name", "author")
_BEGIN: Final = "${"
_MACRO: Final = re.compile(r"\$\{(\w+)\}")


class MacroText(str):
    """A text that exactly one macro has brought in: where a field is numeric it may become a number."""

    __slots__ = ()


def join_plainly(parts: Sequence[str], _brought: Sequence[bool]) -> str:
    """Return the parts one after the other."""
    return "".join(parts)


class FilledSize:
    """How many characters the texts with macros have once these are filled in.

    What has no macro in it has been measured before: `json_problems` bounds it.
    """

    def __init__(self) -> None:
        self._characters = 0

    def add(self, characters: int, path: str) -> None:
        """Count a text before it is made. Raises InvalidQueueConfig when there are too many in all."""
        self._characters += characters
        if self._characters > MAX_JOB_BYTES:
            raise InvalidQueueConfig(
                too_large_job(path, "larger than a job may be, with its macros filled in")
            )


def too_large_job(where: str, what: str) -> Problem:
    """Return the problem of a job that no request to Vertex AI can hold."""
    return Problem(
        where,
        what,
        f"a request to Vertex AI takes about {MAX_JOB_BYTES // 1024} KiB",
        "Use fewer or shorter values; put large inputs into a W&B artifact or a bucket and pass their names.",
    )


def has_macro(value: Any) -> bool:
    """Tell whether `value` is a string with a macro in it."""
    return isinstance(value, str) and _MACRO.search(value) is not None


def is_macro(value: Any) -> bool:
    """Tell whether `value` is a string that consists of exactly one macro."""
    return isinstance(value, str) and _MACRO.fullmatch(value) is not None


def fill_macros(
    value: Any,
    values: Mapping[str, str],
    path: str,
    on_unknown: Callable[[str, str], None],
    join: Callable[[Sequence[str], Sequence[bool]], str] = join_plainly,
    *,
    size: FilledSize,
) -> Any:
    """Return a copy of `value` with the macros in every string leaf filled in, keys left alone.

    Args:
        value: JSON of bounded depth.
        values: Text per macro name.
        path: Where `value` stands, for `on_unknown`.
        on_unknown: Called with path and name of each macro that is not known; it stays as it is. Of those in
            one text it hears a hundred and one.
        join: Makes one text of the parts of a leaf, for each of which it is told whether a macro has brought
            it in.
        size: Counts what is made.

    Raises InvalidQueueConfig for more than a job can hold.
    """
    if isinstance(value, str):
        return _filled_text(value, values, path, on_unknown, join, size)
    # A job may have a hundred thousand texts, and hardly any of them has a macro.
    if is_list(value):
        return [
            item
            if type(item) is str and _BEGIN not in item
            else fill_macros(item, values, at(path, index), on_unknown, join, size=size)
            for index, item in enumerate(value)
        ]
    if is_object(value):
        return {
            key: item
            if type(item) is str and _BEGIN not in item
            else fill_macros(item, values, at(path, key), on_unknown, join, size=size)
            for key, item in value.items()
        }
    return value


def _filled_text(
    text: str,
    values: Mapping[str, str],
    path: str,
    on_unknown: Callable[[str, str], None],
    join: Callable[[Sequence[str], Sequence[bool]], str],
    size: FilledSize,
) -> str:
    parts: list[Any] = _MACRO.split(text)  # what is written and the names of macros, in turn
    names: list[str] = parts[1::2]
    unknown = [name for name in names if name not in values]
    for name in unknown[: MAX_PROBLEMS + 1]:
        on_unknown(path, name)
    if len(unknown) == len(names):
        return text
    parts[1::2] = [values.get(name, f"${{{name}}}") for name in names]
    size.add(sum(map(len, parts)), path)
    brought = [False] * len(parts)
    brought[1::2] = [name in values for name in names]
    filled = join(parts, brought)
    return MacroText(filled) if parts == ["", parts[1], ""] and filled != text else filled
