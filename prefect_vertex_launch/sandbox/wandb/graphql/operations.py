"""The names by which faults call W&B's operations, and which fault each of them can have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from prefect_vertex_launch.core.spelling import right_spelling
from prefect_vertex_launch.sandbox.faults.kinds import WIRE, What
from prefect_vertex_launch.sandbox.wandb.graphql.schema import wandb_schema

# Requests beside GraphQL, by method and the first part of the path.
BESIDE_GRAPHQL: Final[Mapping[tuple[str, str], str]] = {
    ("PUT", "storage"): "upload",
    ("GET", "storage"): "download",
    ("POST", "files"): "file_stream",
    ("GET", "artifactsV2"): "artifact_file",
    ("POST", "sdk"): "telemetry",
}
# What our own client and W&B's call their operations, where that is not a field of the root, and the
# field that each asks for.
_FIELDS_OF_CLIENTS: Final[Mapping[str, str]] = {
    "GetRunQueueMetadata": "project", "ProjectRunQueues": "project", "GetRunQueueItem": "project",
    "GetRunQueueItems": "project", "GetRunQueueItemSpec": "project", "RunStatuses": "project",
    "RunState": "project",
    "GetArtifactMembershipFileUrls": "project", "GetSweepState": "project", "SweepWithRuns": "project",
    "GetDefaultResourceConfig": "entity", "LaunchAgent": "launchAgent", "StopRun": "stopRun",
    "UpsertBucket": "upsertBucket", "CreateRunFiles": "createRunFiles", "UpsertSweep": "upsertSweep",
    "DeleteRunQueue": "deleteRunQueues",
}  # fmt: skip
_POP: Final = "popFromRunQueue"
_ONLY_FIELD: Final[Mapping[What, str]] = {
    What.SAME_ITEM: _POP,
    What.LEASE_ENDS: _POP,
    What.RUN_SPEC: _POP,
    What.STOP_POLLING: "launchAgent",
}
_NAME: Final = re.compile(r"[_A-Za-z][_0-9A-Za-z]*")
_CLOSE: Final = 0.9


def field_can_have(what: What, field: str) -> bool:
    """Tell whether a fault in what an answer means can be at this field of the root."""
    if what is What.FALSE:
        return field in _succeeding()
    return _ONLY_FIELD.get(what, field) == field


def fits(what: What, operation: str) -> bool:
    """Tell whether an operation can have a fault; one of a name that is not known can have any."""
    if operation in BESIDE_GRAPHQL.values():
        return what in WIRE
    field = operation if operation in _root_fields() else _FIELDS_OF_CLIENTS.get(operation)
    return what in WIRE or field is None or field_can_have(what, field)


def near_miss(operation: str) -> str | None:
    """Return the known name that one which no client uses was most likely meant to be, or None.

    Clients name their operations as they like, often as a field but for the first letter.
    """
    known = {*_root_fields(), *_FIELDS_OF_CLIENTS, *BESIDE_GRAPHQL.values()}
    if operation in known:
        return None
    meant = right_spelling(operation, known, likeness=_CLOSE)
    is_a_name = _NAME.fullmatch(operation) is not None
    is_capitalized = meant is not None and operation[:1].swapcase() + operation[1:] == meant
    return None if is_a_name and is_capitalized else meant


@cache
def _root_fields() -> frozenset[str]:
    schema = wandb_schema()
    return frozenset(
        name for root in (schema.query_type, schema.mutation_type) if root is not None for name in root.fields
    )


@cache
def _succeeding() -> frozenset[str]:
    """Return the mutations that say whether they have succeeded."""
    root = wandb_schema().mutation_type
    fields: Mapping[str, Any] = root.fields if root is not None else {}
    return frozenset(name for name, field in fields.items() if "success" in field.type.fields)
