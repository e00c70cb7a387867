"""A simulation as a test to paste: a complete module, imports included, that plays it again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any


def replay(play: Callable[..., Any], /, *arguments: object, **named: object) -> str:
    """Return the text of a test that calls a function with these arguments."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    names[play.__module__].add(play.__name__)
    for argument in (*arguments, *named.values()):
        for kind in _kinds(argument):
            names[kind.__module__].add(kind.__name__)
    imports = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    written = [*map(_written, arguments), *(f"{name}={_written(value)}" for name, value in named.items())]
    test = f"def test_the_invariants_hold() -> None:\n    {play.__name__}({', '.join(written)})"
    return "\n".join([*imports, "", "", test])


def _kinds(value: object) -> Iterator[type]:
    """Every type that has to be imported for a value to be written down."""
    if isinstance(value, Enum):
        yield type(value)
    elif is_dataclass(value):
        yield type(value)
        for name in _changed(value):
            yield from _kinds(getattr(value, name))
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _kinds(each)


def _written(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if is_dataclass(value):
        given = [f"{name}={_written(getattr(value, name))}" for name in _changed(value)]
        return f"{type(value).__name__}({', '.join(given)})"
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return f"({', '.join(map(_written, value))}{comma})"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return repr(value)


def _changed(value: Any) -> list[str]:
    """The fields of a dataclass that are not what they are by default."""
    return [
        field.name
        for field in fields(value)
        if field.default is MISSING or getattr(value, field.name) != field.default
    ]
