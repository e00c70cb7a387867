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

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from prefect_vertex_launch.core.labels import ATTEMPT_LABEL
from prefect_vertex_launch.core.vertex_types import JobState


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

SUCCESS = frozenset({_S.SUCCEEDED, _S.PARTIALLY_SUCCEEDED})

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

    @property
    def attempt(self) -> int:
        """Which attempt of its item the job is, from 1 on."""
        return attempt_number(self.labels)


def attempt_number(labels: Mapping[str, str]) -> int:
    """Return which attempt a job with these labels is; 1 if no label says so readably."""
    text = labels.get(ATTEMPT_LABEL, "")
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,8}", text) else 1


class Requester(StrEnum):
    """Who wants a job to end: a person at W&B or in Prefect, or one of the queue's two timeouts."""

    WANDB = "wandb"
    PREFECT = "prefect"
    QUEUEING_TIMEOUT = "queueing-timeout"
    START_TIMEOUT = "start-timeout"


@dataclass(frozen=True, slots=True)
class StopRequest:
    """The job is to end: who wants it, since when, and how long the run may take to end itself."""

    who: Requester
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
    """What we want: the item under this run id and in this attempt, its end if somebody asked for it."""

    run_id: str
    stop: StopRequest | None = None
    attempt: int = 1


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

    An item that another run claimed is left alone with everything that carries its label. Only the
    jobs of the newest attempt, be it there or only desired, say whether to wait or to report.

    Of two live jobs of one attempt the younger goes: the older one may have been seen and noted down
    already, and a finished one counts only when none is live, so that a cancelled duplicate never
    speaks for the item. Of two attempts it is the older one whose live job goes, whichever was
    created first: a newer attempt is only made once the older one was seen to have ended, so that
    what lives of it is a duplicate that came to light late, and it is the newer one that the books
    know. A job that is being cancelled is not cancelled again; while one of an older attempt is, no
    new one is started, because both would write to the same W&B run.
    """
    if observed.item_state is ItemState.CLAIMED and observed.item_run_id not in {None, desired.run_id}:
        return GiveUp(f"the item was claimed as run {observed.item_run_id}")
    attempt = max(desired.attempt, *(job.attempt for job in observed.jobs), 1)
    if too_many := surplus(observed.jobs, attempt):
        return too_many
    left_over, current = _live(observed.jobs, attempt)
    if current:
        return _stop_or_wait(current[0], desired.stop, now)
    if ended := [job for job in observed.jobs if job.attempt == attempt]:
        return Report(min(ended, key=age))
    if left_over:
        return Wait(left_over[0])
    return _start(observed.item_state, desired.stop)


def surplus(jobs: Iterable[JobRecord], attempt: int = 1) -> Cancel | None:
    """Return the cancelling of the youngest job too many, of older attempts first; None if there is none.

    `jobs` are those of one item, `attempt` is the newest one that is desired.
    """
    jobs = [job for job in jobs if not job.is_terminal]
    attempt = max(attempt, *(job.attempt for job in jobs), 1)
    left_over, current = _live(jobs, attempt)
    for job in reversed(left_over):
        if job.launch_state is not LaunchState.CANCELLING:
            return Cancel(job, f"it is left over from attempt {job.attempt}; this is attempt {attempt}")
    for job in reversed(current[1:]):
        if job.launch_state is not LaunchState.CANCELLING:
            return Cancel(job, f"it duplicates the older job {current[0].name} of the same item")
    return None


def _live(jobs: Iterable[JobRecord], attempt: int) -> tuple[list[JobRecord], list[JobRecord]]:
    """Return the live jobs of older attempts and those of this one, each oldest first."""
    live = sorted((job for job in jobs if not job.is_terminal), key=age)
    return [job for job in live if job.attempt < attempt], [job for job in live if job.attempt == attempt]


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


def age(job: JobRecord) -> tuple[float, int, str]:
    """Return a key that sorts jobs by when they were created, the oldest first."""
    created = job.create_time.timestamp() if job.create_time else float("inf")
    return (created, len(job.job_id), job.job_id)
