"""Run queue items as W&B answers them: their state, and what a pop brings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from pydantic import SecretStr

from prefect_vertex_launch.core.errors import Problem, Transient
from prefect_vertex_launch.core.states import ItemState
from prefect_vertex_launch.wandb.documents import POP
from prefect_vertex_launch.wandb.graphql import MAX_ANSWER_BYTES

_API_KEY_FIELD = "_wandb_api_key"
# Ids are base64: what would have to be decoded is none.
_ITEM_ID = re.compile(r'"runQueueItemId"\s*:\s*"([^"\\]*)"')


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """A run queue item: its state and the run it was claimed for."""

    item_id: str
    state: ItemState
    run_id: str | None


@dataclass(frozen=True, slots=True)
class PoppedItem:
    """A leased item.

    `payload` is the run spec without `_wandb_api_key`, which is `api_key`. When the spec could not be
    read `payload` is None and `problem` says why. `size_bytes` is the size of the whole answer.
    """

    item_id: str
    payload: object
    api_key: SecretStr | None
    size_bytes: int
    problem: Problem | None = None


def as_item_record(item_id: str, item: dict[str, Any]) -> ItemRecord:
    """Return an item of an answer as a record; a state of another name becomes UNKNOWN."""
    run_id = item.get("associatedRunId")
    try:
        state = ItemState(str(item.get("state")).upper())
    except ValueError:
        state = ItemState.UNKNOWN
    return ItemRecord(item_id=item_id, state=state, run_id=str(run_id) if run_id else None)


def as_popped_item(item_id: str, spec: object, size_bytes: int) -> PoppedItem:
    """Return what a pop brought; `spec` is the run spec, or the JSON text of it."""
    if isinstance(spec, str):
        try:
            spec = json.loads(spec)
        except (ValueError, RecursionError) as error:
            return PoppedItem(item_id, None, None, size_bytes, _unreadable(item_id, size_bytes, error))
    if not isinstance(spec, dict):
        return PoppedItem(item_id, spec, None, size_bytes)
    payload = cast("dict[str, Any]", spec)
    key = payload.pop(_API_KEY_FIELD, None)
    return PoppedItem(item_id, payload, SecretStr(key) if isinstance(key, str) and key else None, size_bytes)


def unreadable_item(text: str, error: Exception) -> PoppedItem:
    """Return the item that an answer which is not JSON was about.

    Raises Transient when the answer names no item.
    """
    # The first one is the item's own: whatever the spec holds comes after it.
    match = _ITEM_ID.search(text)
    if match is None:
        raise Transient(f"W&B's answer to {POP.name} is not readable and names no item") from error
    size_bytes = len(text.encode())
    item_id = match[1]
    return PoppedItem(item_id, None, None, size_bytes, _unreadable(item_id, size_bytes, error))


def _unreadable(item_id: str, size_bytes: int, error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        what = "the run spec is nested too deeply to be read"
    elif size_bytes > MAX_ANSWER_BYTES:
        what = f"the run spec is larger than {MAX_ANSWER_BYTES // 1024 // 1024} MiB"
    else:
        what = "the run spec is not valid JSON"
    return Problem(f"item {item_id}", what, fix="Launch the run again with a correct spec.")
