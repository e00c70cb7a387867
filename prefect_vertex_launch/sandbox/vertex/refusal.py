"""How the Vertex AI backend of the sandbox says no: the same refusal for gRPC and for REST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import grpc

# What Vertex AI says when a job would need more than the project may use in the region.
QUOTA_EXCEEDED: Final = (
    "The following quota metrics exceed quota limits:"
    " aiplatform.googleapis.com/custom_model_training_nvidia_t4_gpus"
)
# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto has the mapping.
STATUSES: Final[Mapping[int, grpc.StatusCode]] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_HTTP_STATUSES: Final[Mapping[grpc.StatusCode, int]] = {
    **{status: http_status for http_status, status in STATUSES.items()},
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.ALREADY_EXISTS: 409,
}


class VertexRefusal(Exception):
    """A call that Vertex AI would not carry out: `status` for gRPC, `http_status` for REST."""

    def __init__(self, status: grpc.StatusCode, http_status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.http_status = http_status
        self.message = message


def invalid_argument(message: str) -> VertexRefusal:
    """Return the refusal of a malformed request."""
    return VertexRefusal(grpc.StatusCode.INVALID_ARGUMENT, 400, message)


def not_found(message: str) -> VertexRefusal:
    """Return the refusal of a call about something that is not there."""
    return VertexRefusal(grpc.StatusCode.NOT_FOUND, 404, message)


def failed_precondition(message: str) -> VertexRefusal:
    """Return the refusal of a call that comes at the wrong time."""
    return VertexRefusal(grpc.StatusCode.FAILED_PRECONDITION, 400, message)


def refused_with(message: str | None, *, http_status: int | None, code: str | None) -> VertexRefusal:
    """Return the refusal with this status over REST or this code over gRPC; the one gives the other."""
    status = grpc.StatusCode[code] if code else STATUSES[http_status or 500]
    if message is None:
        is_quota = status is grpc.StatusCode.RESOURCE_EXHAUSTED
        message = QUOTA_EXCEEDED if is_quota else f"The sandbox was told to answer {status.name}."
    return VertexRefusal(status, http_status or _HTTP_STATUSES.get(status, 500), message)


def field_errors(errors: Sequence[tuple[str, str]]) -> VertexRefusal:
    """Return the refusal of a job: all (field, message) pairs, in the form that Vertex AI gives them."""
    listed = "".join(
        f"{number}.Field: {field}; Message: {message}\t"
        for number, (field, message) in enumerate(errors, start=1)
    )
    return invalid_argument(f"List of found errors:\t{listed}")
