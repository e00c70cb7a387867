"""Vertex AI's job service for one project and region: create, get, list, cancel.

One gRPC channel serves everyone in an event loop who uses the same endpoint and credentials. Google's
generated client has neither deadline nor retry on these methods, so each call here has both of ours;
`create` alone is never repeated, because Vertex AI would make a second job. Every request first waits
for its turn in the budget of its project and region; its deadline counts from when it is sent.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import grpc.aio
from google.api_core import exceptions as google
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo

from prefect_vertex_launch.core.clock import Clock, SystemClock
from prefect_vertex_launch.core.diagnosis import quota_kind
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    NotFound,
    OutcomeUnknown,
    OverQuota,
    Permanent,
    PermissionDenied,
    Problem,
    Refused,
    Transient,
)
from prefect_vertex_launch.core.retry import ATTEMPTS, retrying
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.core.vertex_types import (
    CancelCustomJobRequest,
    CreateCustomJobRequest,
    CustomJob,
    GetCustomJobRequest,
    ListCustomJobsRequest,
)
from prefect_vertex_launch.vertex.call_budget import (
    CALLS_PER_MINUTE,
    SUBMISSIONS_PER_MINUTE,
    Call,
    CallBudget,
    shared_budget,
)
from prefect_vertex_launch.vertex.client import JobServiceAsyncClient, JobServiceGrpcAsyncIOTransport

T = TypeVar("T")

PAGE_SIZE = 100
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),
    # A server that comes back is found within seconds, not after gRPC's own two minutes.
    ("grpc.max_reconnect_backoff_ms", 10_000),
    # Event loops and credentials have channels of their own, down to the connection.
    ("grpc.use_local_subchannel_pool", 1),
]
_READ_MASK = FieldMask(
    paths=[
        "name", "display_name", "state", "labels", "create_time", "start_time", "end_time", "update_time",
        "error",
    ]
)  # fmt: skip
# The server's own format for what is wrong with a spec:
# "List of found errors:\t1.Field: job_spec…; Message: …\t2.Field: …; Message: …\t".
_FIELD_ERROR = re.compile(r"\d+\.\s*Field: (?P<field>[^;]*); Message: (?P<message>[^\t]*)")
# The only answers after which there certainly is no job; any other failure of a create may hide one.
_CERTAINLY_NO_JOB = (
    google.BadRequest,
    google.Unauthorized,
    google.Forbidden,
    google.NotFound,
    google.Conflict,
    google.TooManyRequests,
)
# gRPC's own words for a call that was not sent, because no token could be had for it.
_NOT_SENT = "Getting metadata from plugin failed"
_BAD_CREDENTIALS = re.compile(r"invalid_|unauthorized_client|deleted|disabled", re.IGNORECASE)
_FIX_CREDENTIALS = "Check the GcpCredentials block of the queue."


_JOB_NAME = re.compile(r"projects/[^/]+/locations/[^/]+/customJobs/\d+")


@dataclass(eq=False, slots=True)
class _Shared:
    """A client and how many `VertexJobs` use it; holding the credentials keeps their id theirs."""

    client: Any
    credentials: Credentials | None
    users: int = 0


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], _Shared]] = WeakKeyDictionary()


class VertexJobs:
    """The custom jobs of one project and region.

    `endpoint` is None for `https://{location}-aiplatform.googleapis.com`, another `https://host`, or
    `grpc://host:port` for a local server without TLS. Nothing is opened before the first call.
    `calls_per_minute`, and of them `submissions_per_minute` that create a job, is what everyone in the
    event loop may send to this endpoint for this project and region; the lowest numbers of all hold.
    `calls` counts the requests by method.
    """

    def __init__(
        self,
        *,
        project: str,
        location: str,
        credentials: Credentials | None = None,
        endpoint: str | None = None,
        timeout_seconds: float = 30.0,
        create_timeout_seconds: float = 60.0,
        calls_per_minute: int = CALLS_PER_MINUTE,
        submissions_per_minute: int = SUBMISSIONS_PER_MINUTE,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self.project = project
        self.location = location
        self.calls: Counter[str] = Counter()
        self._endpoint = (endpoint or f"https://{location}-aiplatform.googleapis.com").rstrip("/")
        if not re.fullmatch(r"(?:https|grpc)://[^/\s]+", self._endpoint):
            raise Refused(
                Problem(
                    where="endpoint",
                    what=f"{self._endpoint!r} is neither https://host nor grpc://host:port",
                    fix="Leave it empty for Google's own endpoint of the region.",
                )
            )
        self._credentials = credentials
        self._timeout_seconds = timeout_seconds
        self._create_timeout_seconds = create_timeout_seconds
        self._calls_per_minute = calls_per_minute
        self._submissions_per_minute = submissions_per_minute
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311 - jitter
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def parent(self) -> str:
        """The resource that holds the jobs."""
        return f"projects/{self.project}/locations/{self.location}"

    @property
    def used_share(self) -> float:
        """How much of what may be sent in a minute was sent in the last one, from 0 to 1."""
        return self._budget.used_share

    def share_calls(self, *, agents: int) -> None:
        """Send from now on what leaves room for as many calls of each of so many agents, and of one more.

        Submissions are not shared: those of all agents together have a limit of their own.
        """
        self._budget.narrow(2 / (agents + 1))

    async def turn_to_create(self) -> float:
        """Wait until a job may be created, and return this turn for `create`, which is to come soon.

        A create that takes its turn itself may wait for a minute; what was known before may not hold then.
        """
        return await self._budget.take(Call.CREATE)

    async def create(
        self, job: CustomJob, *, timeout_seconds: float | None = None, turn: float | None = None
    ) -> JobRecord:
        """Create a job and return it; sent once, never repeated, and at once if it has its `turn` already.

        Raises Refused with a problem for each field that the server names, PermissionDenied or
        AuthenticationFailed; OverQuota when there certainly is no job; OutcomeUnknown when
        there may be one: look for its label before creating it again.
        """
        where = f"job {job.display_name!r} in {self.parent}"

        async def send(client: Any) -> Any:
            created = await client.create_custom_job(
                request=CreateCustomJobRequest(parent=self.parent, custom_job=job),
                timeout=timeout_seconds or self._create_timeout_seconds,
                retry=None,
            )
            return _received(created)

        try:
            created = await self._send(Call.CREATE, send, turn)
        except google.GoogleAPICallError as error:
            if isinstance(error, _CERTAINLY_NO_JOB) or _NOT_SENT in _message(error):
                raise _translated(error, where) from error
            raise OutcomeUnknown(
                f"{where}: Vertex AI did not say whether it created the job: {_message(error)}"
            ) from error
        record = as_record(_raw(created))
        if not _JOB_NAME.fullmatch(record.name):
            raise OutcomeUnknown(f"{where}: Vertex AI's answer names no job: {record.name!r}")
        return record

    async def get(self, name: str, *, attempts: int = ATTEMPTS) -> JobRecord:
        """Return one job. Raises NotFound when it does not exist, Transient after the last attempt."""
        return as_record(_raw(await self._whole(name, attempts)))

    async def describe(self, name: str) -> CustomJob:
        """Return the whole of a job; the environment of its containers may hold secrets.

        Raises NotFound when it does not exist, Transient after the last attempt.
        """
        return await self._whole(name, ATTEMPTS)

    async def list(self, filter: str) -> tuple[JobRecord, ...]:  # noqa: A002 - the API's own word
        """Return every job that matches an AIP-160 filter, by pages of 100.

        A list that changes while it is read may show a job twice: it is returned once, as it was shown last.
        """
        records: dict[str, JobRecord] = {}
        token, seen = "", set[str]()
        while True:
            page = await self._page(filter, token)
            records.update((job.name, as_record(job)) for job in page.custom_jobs)
            seen.add(token)
            token = page.next_page_token
            if not token:
                return tuple(records.values())
            if token in seen:
                raise Transient(f"the jobs of {self.parent}: Vertex AI's list does not go on")

    async def cancel(self, name: str) -> None:
        """Ask for a job's end; a job that has ended already is fine. Raises NotFound for no such job."""

        async def send(client: Any) -> None:
            request = CancelCustomJobRequest(name=name)
            try:
                await client.cancel_custom_job(request=request, timeout=self._timeout_seconds, retry=None)
            except google.FailedPrecondition:
                # What the server answers for a job that has ended is not documented; this would be it.
                return

        await self._call(Call.CANCEL, f"job {name}", send)

    async def aclose(self) -> None:
        """Let go of the channel; the last of those who share it closes it."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        clients = _shared[loop]
        shared = clients[self._key]
        shared.users -= 1
        if shared.users == 0:
            del clients[self._key]
            await shared.client.transport.close()

    async def _whole(self, name: str, attempts: int) -> CustomJob:
        async def send(client: Any) -> CustomJob:
            request = GetCustomJobRequest(name=name)
            found = await client.get_custom_job(request=request, timeout=self._timeout_seconds, retry=None)
            return _received(found)

        return await self._call(Call.GET, f"job {name}", send, attempts)

    async def _page(self, selection: str, token: str) -> Any:
        async def send(client: Any) -> Any:
            request = ListCustomJobsRequest(
                parent=self.parent,
                filter=selection,
                page_size=PAGE_SIZE,
                page_token=token,
                read_mask=_READ_MASK,
            )
            pager = await client.list_custom_jobs(request=request, timeout=self._timeout_seconds, retry=None)
            async for page in pager.pages:
                return _raw(_received(page))
            raise AssertionError("a pager has at least one page")

        return await self._call(Call.LIST, f"the jobs of {self.parent}", send)

    async def _call(
        self, call: Call, where: str, send: Callable[[Any], Awaitable[T]], attempts: int = ATTEMPTS
    ) -> T:
        async def once() -> T:
            try:
                return await self._send(call, send)
            except google.GoogleAPICallError as error:
                raise _translated(error, where) from error

        return await retrying(once, clock=self._clock, random=self._random, attempts=attempts)

    async def _send(self, call: Call, send: Callable[[Any], Awaitable[T]], turn: float | None = None) -> T:
        """Send one request when its turn has come."""
        budget = self._budget
        sent_at = await budget.take(call) if turn is None else turn
        client = self._client()
        self.calls[call] += 1
        try:
            return await send(client)
        except google.TooManyRequests as error:
            if quota_kind(_message(error)) == "rate":
                budget.slow_down(call, sent_at)
            raise
        except (ValueError, DecodeError) as error:
            if (refusal := _refusal_behind(error)) is None:
                raise
            raise refusal from error

    @property
    def _budget(self) -> CallBudget:
        return shared_budget(
            self._endpoint,
            self.project,
            self.location,
            clock=self._clock,
            calls_per_minute=self._calls_per_minute,
            submissions_per_minute=self._submissions_per_minute,
        )

    @property
    def _key(self) -> tuple[str, int]:
        return (self._endpoint, id(self._credentials))

    def _client(self) -> Any:
        loop = asyncio.get_running_loop()
        clients = _shared.setdefault(loop, {})
        if self._loop is not loop:
            if self._key not in clients:
                client = _open_client(self._endpoint, self._credentials)
                clients[self._key] = _Shared(client, self._credentials)
            clients[self._key].users += 1
            self._loop = loop
        return clients[self._key].client


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


def _received(message: Any) -> Any:
    # What gRPC returns for an answer that is no message.
    if message is None:
        raise google.DataLoss("its answer cannot be read")
    return message


def _raw(message: Any) -> Any:
    return cast("Any", type(message)).pb(message)


def _time(job: Any, field: str) -> datetime | None:
    if not job.HasField(field):
        return None
    try:
        return getattr(job, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        # One job with a time beyond the year 9999 must not hide all others of its list.
        return None


def _open_client(endpoint: str, credentials: Credentials | None) -> JobServiceAsyncClient:
    scheme, _, host = endpoint.partition("://")
    if scheme == "grpc":
        channel = grpc.aio.insecure_channel(host, options=_CHANNEL_OPTIONS)
    else:
        transport = cast("Any", JobServiceGrpcAsyncIOTransport)
        try:
            channel = transport.create_channel(
                host if ":" in host else f"{host}:443", credentials=credentials, options=_CHANNEL_OPTIONS
            )
        except GoogleAuthError as error:
            raise AuthenticationFailed(
                Problem("Google credentials", f"they cannot be used: {error}", fix=_FIX_CREDENTIALS)
            ) from error
    return JobServiceAsyncClient(transport=JobServiceGrpcAsyncIOTransport(channel=channel))


def _translated(error: google.GoogleAPICallError, where: str) -> Permanent | Transient:
    message = _message(error)
    if isinstance(error, google.Unauthorized) or (_NOT_SENT in message and _BAD_CREDENTIALS.search(message)):
        return AuthenticationFailed(
            Problem(where, f"Google does not accept the credentials: {message}", fix=_FIX_CREDENTIALS)
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


def _refusal_behind(error: BaseException) -> google.GoogleAPICallError | None:
    """Return the server's error if Google's client stumbled over its details, which it could not read."""
    while (error_before := error.__context__) is not None:
        if isinstance(error_before, grpc.RpcError):
            rpc_error: Any = error_before
            return cast("Any", google).from_grpc_status(rpc_error.code(), rpc_error.details())
        error = error_before
    return None


def _message(error: google.GoogleAPICallError) -> str:
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
        for match in _FIELD_ERROR.finditer(message)
    ]
    return found or [Problem(where, f"Vertex AI refused it: {message}")]
