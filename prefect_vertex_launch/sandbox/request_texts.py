"""The texts that a request holds, by which a fault finds the requests that it is about."""

from __future__ import annotations

from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.message import Message

from prefect_vertex_launch.sandbox.json_text import read_json


def texts_of(value: object) -> list[str]:
    """Return every name, text and number in a JSON value; a text that is JSON is looked into as well."""
    found: list[str] = []
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            for name, member in cast("dict[object, object]", item).items():
                left += [name, member]
        elif isinstance(item, list | tuple):
            left += cast("list[object]", item)
        elif item is not None and not isinstance(item, bool):
            found.append(str(item))
            left += _value_in(item)
    return found


def texts_of_message(message: object) -> list[str]:
    """Return the same of a protobuf message; nothing is in what could not be read as one."""
    if not isinstance(message, Message):
        return []
    try:
        return texts_of(json_format.MessageToDict(message))
    except json_format.SerializeToJsonError:  # a time or a duration out of range
        return [str(message)]


def texts_of_body(body: bytes) -> list[str]:
    """Return the same of a request's body: what it is made of if it is JSON, else the whole."""
    try:
        return texts_of(read_json(body))
    except ValueError:
        return [body.decode("utf-8", errors="replace")]


def _value_in(item: object) -> list[Any]:
    if not isinstance(item, str) or item.lstrip()[:1] not in {"{", "["}:
        return []
    try:
        return [read_json(item)]
    except ValueError:
        return []
