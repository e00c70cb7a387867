"""`${name}` macros of a queue's configuration: which are known, and how they are filled in.

W&B's agent fills macros from its whole environment; here only the launch's own six names and those
that the queue's block allows are known. Filling is one pass: what a macro brings in is never
expanded again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from vertex_launch.json_value import at, is_list, is_object

LAUNCH_MACROS: Final = ("image_uri", "project_name", "entity_name", "run_id", "run_name", "author")
_MACRO: Final = re.compile(r"\$\{(\w+)\}")


class MacroText(str):
    """A text that exactly one macro has brought in: where a field is numeric it may become a number."""

    __slots__ = ()


def has_macro(value: Any) -> bool:
    """Tell whether `value` is a string with a macro in it."""
    return isinstance(value, str) and _MACRO.search(value) is not None


def is_macro(value: Any) -> bool:
    """Tell whether `value` is a string that consists of exactly one macro."""
    return isinstance(value, str) and _MACRO.fullmatch(value) is not None


def fill_macros(
    value: Any, values: Mapping[str, str], path: str, on_unknown: Callable[[str, str], None]
) -> Any:
    """Return a copy of `value` with the macros in every string leaf filled in, keys left alone.

    Args:
        value: JSON of bounded depth.
        values: Text per macro name.
        path: Where `value` stands, for `on_unknown`.
        on_unknown: Called with path and name of each macro that is not known; it stays as it is.
    """
    if is_object(value):
        return {key: fill_macros(item, values, at(path, key), on_unknown) for key, item in value.items()}
    if is_list(value):
        return [fill_macros(item, values, at(path, i), on_unknown) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            on_unknown(path, name)
            return match[0]
        return values[name]

    filled = _MACRO.sub(replace, value)
    return MacroText(filled) if is_macro(value) and filled != value else filled
