"""A CustomJob as Vertex AI answers it, made into a `JobRecord`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from google.protobuf.field_mask_pb2 import FieldMask

from prefect_vertex_launch.core.states import JobRecord

# The fields that a record is made of.
READ_MASK = FieldMask(
    paths=[
        "name", "display_name", "state", "labels", "create_time", "start_time", "end_time", "update_time",
        "error",
    ]
)  # fmt: skip


def as_record(job: Any) -> JobRecord:
    """Return a CustomJob as a record; takes the protobuf message, whose fields are cheap to read."""
    return JobRecord(
        name=job.name,
        state=job.state,
        display_name=job.display_name,
        labels=dict(job.labels),
        create_time=_time(job, "create_time"),
        start_time=_time(job, "start_time"),
        end_time=_time(job, "end_time"),
        update_time=_time(job, "update_time"),
        error_code=job.error.code,
        error_message=job.error.message,
    )


def raw(message: Any) -> Any:
    """Return the protobuf message behind one of the SDK's."""
    return cast("Any", type(message)).pb(message)


def _time(job: Any, field: str) -> datetime | None:
    if not job.HasField(field):
        return None
    try:
        return getattr(job, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        # One job with a time beyond the year 9999 must not hide the rest of its list.
        return None
