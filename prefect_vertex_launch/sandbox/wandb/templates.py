"""Template variables of a run queue: their schema, and what becomes of `{{name}}` in its config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
}


def schema_problems(variables: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a queue's template variables, `{name: {"schema": {…}, "description": …}}`.

    W&B knows the JSON schema keywords `type` (string, integer, number), `enum`, `minimum`, `maximum`
    and `default`.
    """
    problems: list[str] = []
    for name, variable in variables.items():
        schema: object = (
            cast("dict[str, Any]", variable).get("schema") if isinstance(variable, dict) else None
        )
        if not isinstance(schema, dict):
            problems.append(f"template variable {name!r}: schema must be an object")
            continue
        typed = cast("dict[str, Any]", schema)
        if typed.get("type") not in _TYPES:
            problems.append(f"template variable {name!r}: type must be one of {', '.join(_TYPES)}")
        elif "default" in typed and (problem := _value_problem(typed["default"], typed)):
            problems.append(f"template variable {name!r}: default {problem}")
    return problems


def values_of(variables: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return each variable's value (given, else its default) and everything that is wrong with them."""
    problems = [f"template variable {name!r} is not defined" for name in given if name not in variables]
    values: dict[str, Any] = {}
    for name, variable in variables.items():
        schema = variable["schema"]
        if name in given:
            values[name] = given[name]
        elif "default" in schema:
            values[name] = schema["default"]
        else:
            problems.append(f"template variable {name!r} has neither a value nor a default")
            continue
        if problem := _value_problem(values[name], schema):
            problems.append(f"template variable {name!r}: {problem}")
    return values, problems


def fill(config: Any, values: Mapping[str, Any]) -> Any:
    """Return the config with every `{{name}}` replaced.

    A string that is nothing but one placeholder takes the value with its type; within a longer string
    the value is written out. A name without a value is left as it is.
    """
    if isinstance(config, dict):
        return {key: fill(value, values) for key, value in cast("dict[str, Any]", config).items()}
    if isinstance(config, list):
        return [fill(value, values) for value in cast("list[Any]", config)]
    if not isinstance(config, str):
        return config
    whole = _PLACEHOLDER.fullmatch(config)
    if whole:
        return values.get(whole[1], config)
    return _PLACEHOLDER.sub(lambda found: _written_out(values, found), config)


def _written_out(values: Mapping[str, Any], found: re.Match[str]) -> str:
    value = values.get(found[1], found[0])
    return value if isinstance(value, str) else json.dumps(value)


def _value_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    expected = schema["type"]
    if isinstance(value, bool) or not isinstance(value, _TYPES[expected]):
        return f"{value!r} is not of type {expected!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{value!r} is not one of {schema['enum']!r}"
    if "minimum" in schema and value < schema["minimum"]:
        return f"{value!r} is less than the minimum of {schema['minimum']!r}"
    if "maximum" in schema and value > schema["maximum"]:
        return f"{value!r} is greater than the maximum of {schema['maximum']!r}"
    return None
