"""One launch that is under way in this process, and what its steps have found out so far.

Nothing here needs to survive: all of it can be found again in Prefect, W&B and Vertex AI.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from uuid import UUID

from pydantic import SecretStr

from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.core.errors import Permanent
from prefect_vertex_launch.core.retry_policy import Attempt
from prefect_vertex_launch.core.states import JobRecord, Requester, StopRequest
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig
from prefect_vertex_launch.jobspec.job_source import LaunchImage
from prefect_vertex_launch.jobspec.render import Rendering
from prefect_vertex_launch.jobspec.run_spec import RunSpec
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.wandb.queue import RunPath

_BY_ITSELF = frozenset({Requester.QUEUEING_TIMEOUT, Requester.START_TIMEOUT})


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a job is made of: kept until it is created, made again from the item when one more is needed."""

    spec: RunSpec
    config: QueueConfig
    image: LaunchImage
    renderings: dict[Attempt, Rendering] = field(default_factory=dict[Attempt, Rendering], repr=False)


@dataclass(eq=False)
class LiveLaunch:
    """A launch in progress.

    Attributes:
        slot: Its place under the limits.
        config: What the queue and the item say about its jobs, if that was parsed before it is prepared.
        attempt: The attempt that is under way: its number, and which of the queue's plans it follows.
        ended: The jobs of the attempts before it, oldest first.
        plans: How many plans there are: the configuration as written, and its fallbacks.
        locations: The regions that its jobs go to, one for each plan.
        whereabouts: Where else they may be, sent there before the queue was changed: as
            `projects/…/locations/…`.
        job: The current attempt's job as it was last seen.
        looked_at: When its jobs were last listed, on the session's monotonic clock.
        looked_in: Which region, as its parent, was listed last then.
        may_have_job: Whether another process may have created a job that no list shows yet.
        may_have_twin: Whether a job was created although another one might have been there, by this process
            or by one before it.
        refusal: Why the item cannot be launched.
        created: When its flow run was made, as far as that is known.
        run_showed_up: Whether the run of a job that succeeded is at W&B.
        stop: Who wants the job's end.
        is_waiting_for_slot: Whether it has no job, as everybody knows by now, and waits for its slot.
        job_ended: Set when no job of this launch is under way any more.
        leave: Set when this process is to leave the launch to another one.
        is_anothers: Whether another agent has taken it over already.
    """

    item: QueueItem
    flow_run_id: UUID
    slot: Slot = field(default_factory=Slot)
    api_key: SecretStr | None = field(default=None, repr=False)
    config: QueueConfig | None = field(default=None, repr=False)
    run: RunPath | None = None
    prepared: Prepared | None = field(default=None, repr=False)
    attempt: Attempt = Attempt(number=1, plan=0)  # noqa: RUF009 - frozen
    ended: tuple[JobRecord, ...] = ()
    plans: int = 1
    locations: tuple[str, ...] = ()
    whereabouts: frozenset[str] = frozenset()
    job: JobRecord | None = None
    looked_at: float = -inf
    looked_in: frozenset[str] = frozenset()
    may_have_job: bool = False
    may_have_twin: bool = False
    refusal: Permanent | None = None
    created: datetime | None = None
    run_showed_up: bool = True
    stop: StopRequest | None = None
    stop_requested: asyncio.Event = field(default_factory=asyncio.Event)
    job_changed: asyncio.Event = field(default_factory=asyncio.Event)
    job_ended: asyncio.Event = field(default_factory=asyncio.Event)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    is_anothers: bool = False
    is_waiting_for_slot: bool = False
    # What W&B and Prefect have been told already, so that it is told once.
    told: set[str] = field(default_factory=set[str])

    def request_stop(self, stop: StopRequest) -> None:
        """Ask for the job's end; the first person who asked is remembered, before any timeout."""
        if self.stop is None or (self.stop.who in _BY_ITSELF and stop.who not in _BY_ITSELF):
            self.stop = stop
            self.stop_requested.set()

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
