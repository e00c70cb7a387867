"""One launch that is under way in this process, and what its steps have found out so far.

Nothing here needs to survive: all of it can be found again in Prefect, W&B and Vertex AI.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from math import inf
from uuid import UUID

from pydantic import SecretStr

from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.core.clock import unless_any
from prefect_vertex_launch.core.errors import Permanent
from prefect_vertex_launch.core.foreign_text import several_lines
from prefect_vertex_launch.core.retry_policy import Attempt
from prefect_vertex_launch.core.secrets import Secrets, own_secrets
from prefect_vertex_launch.core.states import JobRecord, Requester, StopRequest
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig
from prefect_vertex_launch.jobspec.job_source import LaunchImage
from prefect_vertex_launch.jobspec.render import Rendering
from prefect_vertex_launch.jobspec.run_spec import RunSpec
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.queue_context import QueueContext
from prefect_vertex_launch.launch.waited_time import WaitedTime
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import RunPath

_BY_ITSELF = frozenset({Requester.QUEUEING_TIMEOUT, Requester.START_TIMEOUT})


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a job is made of: kept until it is created, made again from the item when one more is needed."""

    spec: RunSpec
    config: QueueConfig
    image: LaunchImage
    renderings: dict[Attempt, Rendering] = field(default_factory=dict[Attempt, Rendering], repr=False)


class Launch:
    """A launch in progress.

    It is no dataclass: Prefect walks through every field of a dataclass that is a task's argument.

    Attributes:
        item: The run queue item.
        flow_run_id: Its flow run.
        context: What it shares with the other launches of its queue.
        slot: Its place under the limits.
        api_key: The key of the run's author, if the item brought one.
        secrets: What no text about the launch may hold.
        config: What queue and item say about its jobs, if that was parsed before it is rendered.
        run: The W&B run that the item becomes; None until it is claimed.
        prepared: What its jobs are made of, until one is created.
        attempt: The attempt that is under way: its number, and which of the queue's plans it follows.
        ended: The jobs of the attempts before it, oldest first.
        plans: How many plans there are: the configuration as written, and its fallbacks.
        locations: The regions that its jobs go to, one for each plan.
        parents: Where else its jobs may be, because the queue was changed: `projects/…/locations/…` each.
        job: The current attempt's job as it was last seen.
        looked_at: When its jobs were last listed, in seconds of the queue's monotonic clock.
        looked_in: Which region, as its parent, was listed last then.
        may_have_job: Whether another process may have created a job that no list shows yet.
        may_have_duplicate: Whether a job was created although another one might have been there, by this
            process or by one before it.
        is_unclaimed: Whether W&B did not let us claim the item, which has a job all the same.
        refusal: Why the item cannot be launched.
        unforeseen_reports: How often its report failed in a way that nobody foresaw.
        waited: How long its current attempt has waited.
        run_showed_up: Whether the run of a job that succeeded is at W&B.
        stop: Who wants the job's end.
        stop_requested: Set when somebody does.
        job_changed: Set when the job's state has changed.
        job_ended: Set when no job of this launch is under way any more.
        leave: Set when this process is to leave the launch to another one.
        is_taken_over: Whether another agent has taken it over already.
        is_waiting_for_slot: Whether it has no job, as everybody knows by now, and waits for its slot.
        told: What W&B and Prefect have been told already, so that it is told once.
    """

    def __init__(
        self,
        item: QueueItem,
        flow_run_id: UUID,
        context: QueueContext,
        *,
        api_key: SecretStr | None = None,
        config: QueueConfig | None = None,
        may_have_job: bool = False,
        may_have_duplicate: bool = False,
        parents: frozenset[str] = frozenset(),
        waited: tuple[float, bool] = (0.0, False),
    ) -> None:
        self.item, self.flow_run_id, self.context = item, flow_run_id, context
        self.api_key, self.config = api_key, config
        self.waited = WaitedTime(context.clock, *waited)
        self.secrets = Secrets(*item.secrets, beside=own_secrets)
        if api_key is not None:
            self.secrets.add(api_key.get_secret_value())
        self.slot = Slot()
        self.run: RunPath | None = None
        self.prepared: Prepared | None = None
        self.attempt = Attempt(number=1, plan=0)
        self.ended: tuple[JobRecord, ...] = ()
        self.plans = 1
        self.locations: tuple[str, ...] = ()
        self.parents = parents
        self.job: JobRecord | None = None
        self.looked_at = -inf
        self.looked_in: frozenset[str] = frozenset()
        self.may_have_job, self.may_have_duplicate = may_have_job, may_have_duplicate
        self.is_unclaimed = False
        self.refusal: Permanent | None = None
        self.unforeseen_reports = 0
        self.run_showed_up = True
        self.stop: StopRequest | None = None
        self.stop_requested, self.leave = asyncio.Event(), asyncio.Event()
        self.job_changed, self.job_ended = asyncio.Event(), asyncio.Event()
        self.is_taken_over = self.is_waiting_for_slot = False
        self.told: set[str] = set()

    def clean(self, text: str) -> str:
        """Return a text as it may leave us: without secrets, and with control characters shown."""
        return several_lines(self.secrets.mask(text))

    def complete(self, item: QueueItem, api_key: SecretStr | None) -> None:
        """Go on with the item as W&B has it: in Prefect it is kept without its secrets."""
        self.item, self.config = item, None
        self.secrets.add(*item.secrets)
        if api_key is not None:
            self.api_key = api_key
            self.secrets.add(api_key.get_secret_value())

    def request_stop(self, stop: StopRequest) -> None:
        """Ask for the job's end; the first person who asked is remembered, before any timeout."""
        if self.stop is None or (self.stop.who in _BY_ITSELF and stop.who not in _BY_ITSELF):
            self.stop = stop
            self.stop_requested.set()

    def request_end(self, who: Requester) -> None:
        """Ask for the job's end at once, without grace for the run to end itself."""
        self.request_stop(StopRequest(who, self.context.clock.now(), grace_seconds=0.0))

    @property
    def is_stopped_by_someone(self) -> bool:
        """Whether a person asked for the end, so that no further attempt is wanted."""
        return self.stop is not None and self.stop.who not in _BY_ITSELF

    def begin(self, attempt: Attempt, ended: tuple[JobRecord, ...]) -> None:
        """Turn to the next attempt; a timeout of the one before it is over."""
        self.attempt, self.ended, self.job = attempt, ended, None
        if not self.is_stopped_by_someone:
            self.stop = None
            self.stop_requested.clear()

    async def until_sure(self) -> bool:
        """Wait until nobody else can have taken the launch over; False if one has, or it is to be left."""
        heartbeat = self.context.heartbeat
        return heartbeat is None or (await heartbeat.until_sure(self.leave) and not self.is_taken_over)

    async def may_submit(self) -> bool:
        """Wait until nobody else can have the launch; False if one has, or it is to be left or ended."""
        is_sure = await self.until_sure()
        return is_sure and not (self.leave.is_set() or self.stop_requested.is_set())

    def has_slot(self) -> bool:
        """Whether it may create a job under its slot; a launch that may have lost its slot waits for it."""
        if self.slot.may_have_ended(self.context.clock.monotonic()):
            self.slot.admits.clear()
        return self.slot.admits.is_set()

    async def turn_to_submit(self, jobs: VertexJobs) -> float | None:
        """Wait for its job's turn among all that are submitted to a region, and return the turn.

        None means that the launch is to be left or ended first.
        """
        ends = (self.leave, self.stop_requested)
        rate = self.context.rate
        if rate is not None and not await rate.take(jobs.location, unless=ends):
            return None
        return await unless_any(jobs.turn_to_create(), *ends)
