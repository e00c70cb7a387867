"""JSON values that other people wrote: looked over without recursion, named and shown safely.

Everything that comes from a run queue is measured here before anything else touches it, so that no
later step meets a value that is too large, nested too deeply, or not JSON at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, TypeAlias, TypeGuard

from prefect_vertex_launch.core.errors import Problem

MAX_SPEC_BYTES: Final = 480 * 1024
# What a gRPC server takes in one message unless it is told otherwise, less 64 KiB for what a launch puts in
# front of its commands.
MAX_JOB_BYTES: Final = 4 * 1024 * 1024 - 64 * 1024
MAX_SPEC_DEPTH: Final = 100
# Beyond the range of a double (2**1024) no reader of the other side can hold an integer.
MAX_INTEGER_BITS: Final = 1024
MAX_PROBLEMS: Final = 100
FURTHER_PROBLEMS: Final = Problem(
    "further problems", f"not looked for after these {MAX_PROBLEMS}", fix="Correct these first."
)
_MAX_SHOWN: Final = 60
# The quotes of a key. They are counted with the object, so that a large one is seen before its keys are.
_KEY_BYTES: Final = 2

type_names: Final[dict[type, str]] = {
    type(None): "null",
    bool: "true/false",
    int: "an integer",
    float: "a number with a fraction",
    str: "a string",
    list: "a list",
    dict: "an object",
}

# What is wrong with a value, why, and perhaps what to do; empty when nothing is.
_Flaw: TypeAlias = tuple[str, str] | tuple[str, str, str] | tuple[()]
_NOT_JSON: Final = "it is not JSON"
# Why a text may not hold one: JSON may, but PostgreSQL, where Prefect keeps what it is given, refuses it.
_NO_NUL: Final = ("no argument, variable or database can", "Remove it.")

# A path is a chain of (parent, key or index): it costs nothing until a problem is written.
_Path: TypeAlias = tuple[Any, Any] | None


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether `value` is a JSON object."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Tell whether `value` is a JSON list."""
    return isinstance(value, list)


def is_empty(value: Any) -> bool:
    """Tell whether `value` says nothing: null, "", [], {} or an object of such."""
    if is_object(value):
        return all(member is None or member in ("", [], {}) for member in value.values())
    return value is None or value in ("", [])


def kind_of(value: Any) -> str:
    """Name the JSON kind of `value` for a person, with its article."""
    return next((name for kind, name in type_names.items() if isinstance(value, kind)), type(value).__name__)


def shown(value: Any) -> str:
    """Return `value` as short, printable text: at most about 60 characters, no lone surrogates."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | dict):
        return kind_of(value)
    text = repr(value[: _MAX_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def at(path: str, step: str | int) -> str:
    """Return the path of a member: `path.key` or `path[3]`; a key that would mislead is quoted."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    if len(step) <= _MAX_SHOWN and step.isascii() and step.replace("_", "a").replace("-", "a").isalnum():
        return f"{path}.{step}" if path else step
    return f"{path}[{shown(step)}]"


def json_problems(value: Any, *, where: str, root: str = "") -> tuple[Problem, ...]:
    """Return why `value` cannot be read as a specification; empty when it can.

    Args:
        value: Anything; JSON as `json.loads` gives it when all is well.
        where: What the value is called when the whole of it is the problem.
        root: The path that the paths of its members start with.

    A value larger than 480 KiB (as compact JSON) or nested deeper than 100 levels is reported as
    such alone. Otherwise each NaN, infinite number, integer beyond a double's range, text that is
    not Unicode or holds a NUL character and value that is not JSON is reported with its exact path. After a
    hundred of them the search ends, and the last problem says so.
    """
    problems: list[Problem] = []
    size_bytes = 0
    todo: list[tuple[Any, _Path, int]] = [(value, None, 1)]
    while todo:
        item, path, depth = todo.pop()
        size_bytes += _own_bytes(item)
        if size_bytes <= MAX_SPEC_BYTES and (is_list(item) or is_object(item)):
            if item and depth >= MAX_SPEC_DEPTH:
                return (_too_deep(where),)
            flaws, member_bytes = _look_into(item, path, depth, todo)
            size_bytes += member_bytes
        else:
            flaws = [flaw] if (flaw := _flaw(item)) else []
        if size_bytes > MAX_SPEC_BYTES:
            return (_too_large(where),)
        problems += [Problem(_written(root, path) or where, *flaw) for flaw in flaws]
        if len(problems) > MAX_PROBLEMS:
            return (*reversed(problems[:MAX_PROBLEMS]), FURTHER_PROBLEMS)
    # Members wait on a stack, so they are met last to first.
    return tuple(reversed(problems))


def _look_into(
    item: dict[str, Any] | list[Any], path: _Path, depth: int, todo: list[tuple[Any, _Path, int]]
) -> tuple[list[_Flaw], int]:
    """Return what is wrong with the keys of a container, and the bytes of the members that are looked at.

    What has members of its own or a flaw waits in `todo`. An item may have a quarter of a million members:
    for those in which nothing is wrong not even a path is made.
    """
    flaws: list[_Flaw] = []
    size_bytes = 0
    members: Iterable[tuple[Any, Any]] = enumerate(item)
    if isinstance(item, dict):
        members = item.items()
        for key in item:
            size_bytes -= _KEY_BYTES
            if type(key) is str and (sound_bytes := _sound_bytes(key)):
                size_bytes += sound_bytes
                continue
            size_bytes += _own_bytes(key)
            if (flaw := _flaw_of_key(key)) and len(flaws) <= MAX_PROBLEMS:
                flaws.append(flaw)
    for step, member in members:
        if sound_bytes := _sound_bytes(member):
            size_bytes += sound_bytes
        else:
            todo.append((member, (path, step), depth + 1))
    return flaws, size_bytes


def _sound_bytes(value: Any) -> int:
    """Return the size of a value without members and flaws; 0 for any other, which is looked at by itself."""
    if type(value) is str and "\0" not in value:
        if value.isascii():
            return 2 + len(value)
        return _own_bytes(value) if is_unicode(value) else 0
    if type(value) is int:
        return 1 + bits * 3 // 10 if (bits := value.bit_length()) <= MAX_INTEGER_BITS else 0
    if value is None or type(value) is bool or (type(value) is float and -math.inf < value < math.inf):
        return 4
    return 2 if type(value) in {list, dict} and not value else 0


def _own_bytes(value: Any) -> int:
    """Return about how long `value` is as JSON, its members left out but what stands around them counted."""
    members: Any = value
    if isinstance(value, list):
        return 2 + len(members)
    if isinstance(value, dict):
        return 2 + len(members) * (_KEY_BYTES + 2)
    if isinstance(value, str):
        return 2 + (len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass")))
    if isinstance(value, int) and not isinstance(value, bool):
        return 1 + value.bit_length() * 3 // 10
    return 4


def _flaw(value: Any) -> _Flaw:
    if value is None or isinstance(value, bool):
        return ()
    if isinstance(value, int):
        return () if value.bit_length() <= MAX_INTEGER_BITS else (f"{shown(value)} is too large", _NOT_JSON)
    if isinstance(value, float):
        return () if math.isfinite(value) else (f"{value} is not a number that JSON knows", _NOT_JSON)
    if isinstance(value, str):
        if not is_unicode(value):
            return ("half of a surrogate pair is not a character", _NOT_JSON)
        return ("holds a NUL character", *_NO_NUL) if "\0" in value else ()
    return (f"a Python {type(value).__name__} is not a JSON value", _NOT_JSON)


def is_unicode(text: str) -> bool:
    """Tell whether `text` can be written as UTF-8: lone surrogates cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _flaw_of_key(key: Any) -> _Flaw:
    if not isinstance(key, str):
        return (f"the key {shown(key)} is not a string", _NOT_JSON)
    if not is_unicode(key):
        return (f"the key {shown(key)} holds half of a surrogate pair", _NOT_JSON)
    return (f"the key {shown(key)} holds a NUL character", *_NO_NUL) if "\0" in key else ()


def _written(root: str, path: _Path) -> str:
    steps: list[Any] = []
    while path is not None:
        path, step = path
        steps.append(step)
    text = root
    for step in reversed(steps):
        text = at(text, step if isinstance(step, str | int) else shown(step))
    return text


def _too_large(where: str) -> Problem:
    return Problem(
        where,
        f"larger than {MAX_SPEC_BYTES // 1024} KiB",
        "it has to fit into one request to Vertex AI, together with what the launch adds",
        "Put large inputs into a W&B artifact or a bucket and pass their names.",
    )


def _too_deep(where: str) -> Problem:
    return Problem(
        where,
        f"nested deeper than {MAX_SPEC_DEPTH} levels",
        "no field of a run spec or a CustomJob is that deep",
        "Flatten it.",
    )
