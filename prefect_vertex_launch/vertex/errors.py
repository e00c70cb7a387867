"""How the errors of Google's client become those of `core.errors`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, cast

import grpc
from google.api_core import exceptions as google
from google.rpc.error_details_pb2 import RetryInfo

from prefect_vertex_launch.core.diagnosis import quota_kind
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    NotFound,
    OverQuota,
    Permanent,
    PermissionDenied,
    Problem,
    Refused,
    Transient,
)
from prefect_vertex_launch.core.json_value import MAX_PROBLEMS

FIX_CREDENTIALS: Final = "Check the GcpCredentials block of the queue."
# The server's own format for what is wrong with a spec:
# "List of found errors:\t1.Field: job_spec…; Message: …\t2.Field: …; Message: …\t". A field's name has a
# bound, so that a text in which many begin and none ends is not read over and over.
_FIELD_ERROR: Final = re.compile(
    r"(?<!\d)\d{1,4}\.\s{0,4}Field: (?P<field>[^;\t]{0,500}); Message: (?P<message>[^\t]*)"
)
# The only answers after which there certainly is no job; any other failure of a create may hide one.
_CERTAINLY_NO_JOB: Final = (
    google.BadRequest,
    google.Unauthorized,
    google.Forbidden,
    google.NotFound,
    google.Conflict,
    google.TooManyRequests,
)
# gRPC's own words for a call that was not sent, because no token could be had for it.
NOT_SENT: Final = "Getting metadata from plugin failed"
_BAD_CREDENTIALS: Final = re.compile(r"invalid_|unauthorized_client|deleted|disabled", re.IGNORECASE)


def translated(error: google.GoogleAPICallError, where: str) -> Permanent | Transient:
    """Return what an error means; `where` says which job or jobs the call was about."""
    message = message_of(error)
    if isinstance(error, google.Unauthorized) or (NOT_SENT in message and _BAD_CREDENTIALS.search(message)):
        return AuthenticationFailed(
            Problem(where, f"Google does not accept the credentials: {message}", fix=FIX_CREDENTIALS)
        )
    if isinstance(error, google.Forbidden):
        return PermissionDenied(
            Problem(
                where,
                f"Vertex AI says no: {message}",
                why="the service account needs aiplatform.customJobs.create, get, list and cancel",
                fix="Grant it the role Vertex AI User, and iam.serviceAccounts.actAs on the job's account.",
            )
        )
    if isinstance(error, google.NotFound):
        return NotFound(Problem(where, f"Vertex AI does not find it: {message}"))
    if isinstance(error, google.TooManyRequests):
        return OverQuota(
            f"{where}: Vertex AI's quota is used up: {message}",
            is_capacity=quota_kind(message) == "capacity",
            retry_after_seconds=_retry_after(error),
        )
    if isinstance(error, google.ClientError) and not isinstance(error, google.Cancelled | google.Aborted):
        return Refused(_problems(message, where))
    return Transient(
        f"{where}: Vertex AI could not be asked: {message}", retry_after_seconds=_retry_after(error)
    )


def may_hide_a_job(error: google.GoogleAPICallError) -> bool:
    """Tell whether a create that failed like this may have created its job."""
    return not isinstance(error, _CERTAINLY_NO_JOB) and NOT_SENT not in message_of(error)


def refusal_behind(error: BaseException) -> google.GoogleAPICallError | None:
    """Return the server's error if Google's client stumbled over its details, which it could not read."""
    while (error_before := error.__context__) is not None:
        if isinstance(error_before, grpc.RpcError):
            rpc_error: Any = error_before
            return cast("Any", google).from_grpc_status(rpc_error.code(), rpc_error.details())
        error = error_before
    return None


def message_of(error: google.GoogleAPICallError) -> str:
    """Return what the server said."""
    return str(cast("Any", error).message)


def _retry_after(error: google.GoogleAPICallError) -> float | None:
    for detail in cast("Any", error).details:
        if isinstance(detail, RetryInfo):
            # No timedelta: it may be longer than one can be.
            return max(0.0, detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9)
    return None


def _problems(message: str, where: str) -> Sequence[Problem]:
    found = [
        Problem(f"{where}: {match['field']}", match["message"].strip(), why="Vertex AI refused it")
        for match in islice(_FIELD_ERROR.finditer(message), MAX_PROBLEMS)
    ]
    return found or [Problem(where, f"Vertex AI refused it: {message}")]
