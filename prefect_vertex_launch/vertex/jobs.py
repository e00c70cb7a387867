"""Vertex AI's job service for one project and region: create, get, list, cancel.

Google's generated client has neither deadline nor retry on these methods, so each call here has both
of ours. Only `create` is never repeated, because Vertex AI would make a second job. Every request first
waits for its turn in the budget of its project and region. Its deadline counts from when it is sent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

from google.api_core import exceptions as google
from google.auth.credentials import Credentials
from google.protobuf.message import DecodeError

from prefect_vertex_launch.core.clock import Clock, SystemClock
from prefect_vertex_launch.core.diagnosis import quota_kind
from prefect_vertex_launch.core.errors import LaunchError, OutcomeUnknown, Problem, Refused, Transient
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
from prefect_vertex_launch.vertex.channel import Channel
from prefect_vertex_launch.vertex.errors import may_hide_a_job, message_of, refusal_behind, translated
from prefect_vertex_launch.vertex.job_record import READ_MASK, as_record, raw

T = TypeVar("T")

PAGE_SIZE = 100
_JOB_NAME = re.compile(r"projects/[^/]+/locations/[^/]+/customJobs/\d+")


class VertexJobs:
    """The custom jobs of one project and region.

    `endpoint` is None for `https://{location}-aiplatform.googleapis.com`, another `https://host`, or
    `grpc://host:port` for a local server without TLS. Nothing is opened before the first call.
    `calls_per_minute` is what everyone in the event loop together may send to this endpoint for this
    project and region; `submissions_per_minute` of these may create a job. `on_denied` is called when a
    request is refused because of its credentials. Where clients of one project
    and region have different numbers, the lowest ones hold. `calls` counts the requests by method.
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
        on_denied: Callable[[], None] | None = None,
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
        self._channel = Channel(self._endpoint, credentials)
        self._timeout_seconds = timeout_seconds
        self._create_timeout_seconds = create_timeout_seconds
        self._calls_per_minute = calls_per_minute
        self._submissions_per_minute = submissions_per_minute
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311 - jitter
        self._on_denied = on_denied

    @property
    def parent(self) -> str:
        """The resource that holds the jobs."""
        return f"projects/{self.project}/locations/{self.location}"

    @property
    def used_share(self) -> float:
        """How much of what may be sent in a minute was sent in the last one, from 0 to 1."""
        return self._budget.used_share

    def share_calls(self, *, agents: int) -> None:
        """Send from now on only the share of one of so many agents, and leave room for one agent more.

        Submissions are not shared: those of all agents together have a limit of their own.
        """
        self._budget.narrow(2 / (agents + 1))

    async def use(self, credentials: Credentials | None) -> None:
        """Send what is sent from now on with other credentials."""
        old, self._channel = self._channel, Channel(self._endpoint, credentials)
        await old.aclose()

    async def turn_to_create(self) -> float:
        """Wait until a job may be created, and return this turn; pass it to `create` soon.

        A create without a turn may wait for a minute, and what the caller knew before may be wrong then.
        """
        return await self._budget.take(Call.CREATE)

    async def create(
        self, job: CustomJob, *, timeout_seconds: float | None = None, turn: float | None = None
    ) -> JobRecord:
        """Create a job and return it. It is sent once and never repeated; with a `turn` it is sent at once.

        Raises Refused with a problem for each field that the server names, PermissionDenied or
        AuthenticationFailed; OverQuota when there certainly is no job; OutcomeUnknown when
        there may be one: look for its label before creating it again.
        """
        where = f"job {job.display_name!r} in {self.parent}"
        # Made before anything is sent: what is wrong with the job itself is certain not to have created it.
        request = CreateCustomJobRequest(parent=self.parent, custom_job=job)

        async def send(client: Any) -> Any:
            created = await client.create_custom_job(
                request=request,
                timeout=timeout_seconds or self._create_timeout_seconds,
                retry=None,
            )
            return _received(created)

        try:
            created = await self._send(Call.CREATE, send, turn)
        except google.GoogleAPICallError as error:
            if not may_hide_a_job(error):
                raise translated(error, where) from error
            raise OutcomeUnknown(
                f"{where}: Vertex AI did not say whether it created the job: {message_of(error)}"
            ) from error
        except LaunchError:
            raise
        except Exception as error:
            # Whatever it is, the request may have been sent.
            raise OutcomeUnknown(
                f"{where}: nobody can tell whether it was created: {type(error).__name__}"
            ) from error
        record = as_record(raw(created))
        if not _JOB_NAME.fullmatch(record.name):
            raise OutcomeUnknown(f"{where}: Vertex AI's answer names no job: {record.name!r}")
        return record

    async def get(self, name: str, *, attempts: int = ATTEMPTS) -> JobRecord:
        """Return one job. Raises NotFound when it does not exist, Transient after the last attempt."""
        return as_record(raw(await self._whole(name, attempts)))

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
        await self._channel.aclose()

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
                read_mask=READ_MASK,
            )
            pager = await client.list_custom_jobs(request=request, timeout=self._timeout_seconds, retry=None)
            async for page in pager.pages:
                return raw(_received(page))
            raise AssertionError("a pager has at least one page")

        return await self._call(Call.LIST, f"the jobs of {self.parent}", send)

    async def _call(
        self, call: Call, where: str, send: Callable[[Any], Awaitable[T]], attempts: int = ATTEMPTS
    ) -> T:
        async def once() -> T:
            try:
                return await self._send(call, send)
            except google.GoogleAPICallError as error:
                raise translated(error, where) from error

        return await retrying(once, clock=self._clock, random=self._random, attempts=attempts)

    async def _send(self, call: Call, send: Callable[[Any], Awaitable[T]], turn: float | None = None) -> T:
        """Send one request when its turn has come."""
        budget = self._budget
        sent_at = await budget.take(call) if turn is None else turn
        client = self._channel.client()
        self.calls[call] += 1
        try:
            return await send(client)
        except (google.Unauthorized, google.Forbidden):
            if self._on_denied is not None:
                self._on_denied()
            raise
        except google.TooManyRequests as error:
            if quota_kind(message_of(error)) == "rate":
                budget.slow_down(call, sent_at)
            raise
        except (ValueError, DecodeError) as error:
            if (refusal := refusal_behind(error)) is None:
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


def _received(message: Any) -> Any:
    # What gRPC returns for an answer that is no message.
    if message is None:
        raise google.DataLoss("its answer cannot be read")
    return message
