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

from prefect_vertex_launch.core.json_value import at, is_list, is_object

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
) -> Any:
    """Return a copy of `value` with the macros in every string leaf filled in, keys left alone.

    Args:
        value: JSON of bounded depth.
        values: Text per macro name.
        path: Where `value` stands, for `on_unknown`.
        on_unknown: Called with path and name of each macro that is not known; it stays as it is.
        join: Makes one text of a leaf's pieces.
    """
    if is_object(value):
        return {
            key: fill_macros(item, values, at(path, key), on_unknown, join) for key, item in value.items()
        }
    if is_list(value):
        return [fill_macros(item, values, at(path, i), on_unknown, join) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    filled = join(_pieces(value, values, path, on_unknown))
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
