"""`${name}` macros of a queue's configuration: which are known, and how they are filled in.

W&B's agent fills macros from its whole environment; here only the launch's own six names and those
that the queue's block allows are known. Filling is one pass: what a macro brings in is never
expanded again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prefect_vertex_launch.core.errors import InvalidQueueConfig, Problem
from prefect_vertex_launch.core.json_value import MAX_JOB_BYTES, at, is_list, is_object

LAUNCH_MACROS: Final = ("image_uri", "project_name", "entity_name", "run_id", "run_name", "author")
_MACRO: Final = re.compile(r"\$\{(\w+)\}")


class MacroText(str):
    """A text that exactly one macro has brought in: where a field is numeric it may become a number."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a filled text: `is_brought` if a macro has brought it in."""

    text: str
    is_brought: bool


def join_plainly(pieces: Sequence[Piece]) -> str:
    """Return the pieces one after the other."""
    return "".join(piece.text for piece in pieces)


class FilledSize:
    """How many characters a configuration has once its macros are filled in."""

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
    join: Callable[[Sequence[Piece]], str] = join_plainly,
    *,
    size: FilledSize,
) -> Any:
    """Return a copy of `value` with the macros in every string leaf filled in, keys left alone.

    Args:
        value: JSON of bounded depth.
        values: Text per macro name.
        path: Where `value` stands, for `on_unknown`.
        on_unknown: Called with path and name of each macro that is not known; it stays as it is.
        join: Makes one text of a leaf's pieces.
        size: Counts what is made.

    Raises InvalidQueueConfig for more than a job can hold.
    """
    if is_object(value):
        return {
            key: fill_macros(item, values, at(path, key), on_unknown, join, size=size)
            for key, item in value.items()
        }
    if is_list(value):
        return [
            fill_macros(item, values, at(path, i), on_unknown, join, size=size)
            for i, item in enumerate(value)
        ]
    if not isinstance(value, str):
        return value
    pieces = _pieces(value, values, path, on_unknown)
    size.add(sum(len(piece.text) for piece in pieces), path)
    filled = join(pieces)
    return MacroText(filled) if is_macro(value) and filled != value else filled


def _pieces(
    text: str, values: Mapping[str, str], path: str, on_unknown: Callable[[str, str], None]
) -> list[Piece]:
    """Split a text at its known macros; an unknown one is part of the text around it."""
    pieces: list[Piece] = []
    written_from = 0
    for match in _MACRO.finditer(text):
        name = match[1]
        if name not in values:
            on_unknown(path, name)
            continue
        pieces += (Piece(text[written_from : match.start()], False), Piece(values[name], True))
        written_from = match.end()
    return [*pieces, Piece(text[written_from:], False)]
