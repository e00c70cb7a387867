"""How the Vertex AI backend of the sandbox says no: the same refusal for gRPC and for REST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import grpc

_STATUSES: Final[Mapping[int, grpc.StatusCode]] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
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


def refused_with(http_status: int, message: str) -> VertexRefusal:
    """Return the refusal that has this status over REST."""
    return VertexRefusal(_STATUSES[http_status], http_status, message)


def field_errors(errors: Sequence[tuple[str, str]]) -> VertexRefusal:
    """Return the refusal of a job: all (field, message) pairs, in the form that Vertex AI gives them."""
    listed = "".join(
        f"{number}.Field: {field}; Message: {message}\t"
        for number, (field, message) in enumerate(errors, start=1)
    )
    return invalid_argument(f"List of found errors:\t{listed}")
