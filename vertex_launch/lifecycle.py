"""The states of a launch, how they follow each other, and what to do next.

    popped ─► claimed ─► submitted ─► queued ─► pending ─► running ─► succeeded
       │         │                       │         │       │  ▲  │    partially_succeeded
       └────┬────┘                       └────┬────┘       ▼  │  │    failed
            ▼                                 ▼          paused  │    expired
         refused                          cancelling ◄───────────┘    lost
                                              └─────────► cancelled (or any other end)

`TRANSITIONS` is the whole truth; the picture is its outline. Vertex AI's states are mapped by
member, because the text of `JobState` is a number on Python ≥ 3.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from vertex_launch.vertex_types import JobState


class LaunchState(StrEnum):
    """Where one launch is on its way."""

    POPPED = "popped"
    CLAIMED = "claimed"
    SUBMITTED = "submitted"
    QUEUED = "queued"
    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    PARTIALLY_SUCCEEDED = "partially_succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"
    REFUSED = "refused"


_S = LaunchState

STATE_OF_JOB: Mapping[JobState, LaunchState] = MappingProxyType(
    {
        JobState.JOB_STATE_UNSPECIFIED: _S.SUBMITTED,
        JobState.JOB_STATE_QUEUED: _S.QUEUED,
        JobState.JOB_STATE_PENDING: _S.PENDING,
        JobState.JOB_STATE_RUNNING: _S.RUNNING,
        JobState.JOB_STATE_SUCCEEDED: _S.SUCCEEDED,
        JobState.JOB_STATE_FAILED: _S.FAILED,
        JobState.JOB_STATE_CANCELLING: _S.CANCELLING,
        JobState.JOB_STATE_CANCELLED: _S.CANCELLED,
        JobState.JOB_STATE_PAUSED: _S.PAUSED,
        JobState.JOB_STATE_EXPIRED: _S.EXPIRED,
        JobState.JOB_STATE_UPDATING: _S.RUNNING,
        JobState.JOB_STATE_PARTIALLY_SUCCEEDED: _S.PARTIALLY_SUCCEEDED,
    }
)

TERMINAL = frozenset(
    {_S.SUCCEEDED, _S.PARTIALLY_SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.EXPIRED, _S.LOST, _S.REFUSED}
)

_JOB_ENDS = TERMINAL - {_S.REFUSED}
_JOB_LIVES = frozenset({_S.QUEUED, _S.PENDING, _S.RUNNING, _S.PAUSED, _S.CANCELLING})

TRANSITIONS: Mapping[LaunchState, frozenset[LaunchState]] = MappingProxyType(
    {
        _S.POPPED: frozenset({_S.CLAIMED, _S.REFUSED}),
        _S.CLAIMED: frozenset({_S.SUBMITTED, _S.REFUSED}) | _JOB_LIVES | _JOB_ENDS,
        _S.SUBMITTED: _JOB_LIVES | _JOB_ENDS,
        # A whole job can be tried again by Vertex AI, so a running one may wait once more.
        **{state: (_JOB_LIVES - {state}) | _JOB_ENDS for state in _JOB_LIVES - {_S.CANCELLING}},
        _S.CANCELLING: _JOB_ENDS,
        **{state: frozenset() for state in TERMINAL},
    }
)


def state_of_job(state: JobState | int) -> LaunchState:
    """Return the launch state of a job's state; a state this SDK does not know is not an end."""
    try:
        return STATE_OF_JOB[JobState(state)]
    except (ValueError, KeyError):
        return LaunchState.SUBMITTED


def advance(current: LaunchState, to: LaunchState) -> LaunchState:
    """Return `to` if it may follow `current`; staying is always allowed. Raises ValueError if not."""
    if to is not current and to not in TRANSITIONS[current]:
        raise ValueError(f"a launch cannot go from {current.value} to {to.value}")
    return to


class ItemState(StrEnum):
    """The states of a run queue item that W&B's clients know."""

    PENDING = "PENDING"
    LEASED = "LEASED"
    CLAIMED = "CLAIMED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What a read of a CustomJob says, as far as a launch needs it."""

    name: str
    state: JobState | int
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    update_time: datetime | None = None
    error_code: int = 0
    error_message: str = ""
    is_gone: bool = False

    @property
    def launch_state(self) -> LaunchState:
        """The launch state of the job; a job that was there and is gone is lost."""
        return LaunchState.LOST if self.is_gone else state_of_job(self.state)

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended for good."""
        return self.launch_state in TERMINAL

    @property
    def job_id(self) -> str:
        """The job's number."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Somebody wants the job to end: who, since when, and how long the run may take to end itself."""

    who: str
    since: datetime
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What W&B says of an item and Vertex AI of its jobs (found by label)."""

    item_state: ItemState | None
    item_run_id: str | None
    jobs: tuple[JobRecord, ...]


@dataclass(frozen=True, slots=True)
class Desired:
    """What we want: the item under this run id, and its end if somebody asked for it."""

    run_id: str
    stop: StopRequest | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """Acknowledge the item at W&B."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Create the job."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Leave the job alone."""

    job: JobRecord


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask Vertex AI to cancel the job."""

    job: JobRecord
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell how the job ended."""

    job: JobRecord


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave the item to whoever has it."""

    reason: str


Decision = Claim | Submit | Wait | Cancel | Report | GiveUp


def decide(observed: Observed, desired: Desired, now: datetime) -> Decision:
    """Return the one thing to do next for an item.

    An item that another run claimed is left alone with everything that carries its label. Of two
    live jobs the younger goes first. A finished job counts only when none is live, so that a
    cancelled duplicate never speaks for the item.
    """
    if observed.item_state is ItemState.CLAIMED and observed.item_run_id not in {None, desired.run_id}:
        return GiveUp(f"the item was claimed as run {observed.item_run_id}")
    live = sorted((job for job in observed.jobs if not job.is_terminal), key=_age)
    if len(live) > 1:
        return Cancel(live[-1], f"it duplicates the older job {live[0].name} of the same item")
    if live:
        return _stop_or_wait(live[0], desired.stop, now)
    if observed.jobs:
        return Report(min(observed.jobs, key=_age))
    return _start(observed.item_state, desired.stop)


def _start(item_state: ItemState | None, stop: StopRequest | None) -> Decision:
    if stop is not None:
        return GiveUp(f"its end was requested by {stop.who} before there was a job")
    if item_state is ItemState.FAILED:
        return GiveUp("the item has failed at W&B")
    return Submit() if item_state is ItemState.CLAIMED else Claim()


def _stop_or_wait(job: JobRecord, stop: StopRequest | None, now: datetime) -> Decision:
    if stop is None or job.launch_state is LaunchState.CANCELLING:
        return Wait(job)
    if now < stop.since + timedelta(seconds=stop.grace_seconds):
        return Wait(job)
    return Cancel(job, f"its end was requested by {stop.who}")


def _age(job: JobRecord) -> tuple[float, int, str]:
    created = job.create_time.timestamp() if job.create_time else float("inf")
    return (created, len(job.job_id), job.job_id)
