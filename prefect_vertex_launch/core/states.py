"""The states of a launch, and how they follow each other.

    claimed ─► submitted ─► queued ─► pending ─► running ─► succeeded
       │                       │         │       │  ▲  │    partially_succeeded
       ▼                       └────┬────┘       ▼  │  │    failed
    refused                         ▼          paused  │    expired
                                cancelling ◄───────────┘    lost
                                    └─────────► cancelled (or any other end)

`TRANSITIONS` is the whole truth; the picture is its outline. Vertex AI's states are mapped by
member, because the text of `JobState` is a number on Python ≥ 3.11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from prefect_vertex_launch.core.labels import ATTEMPT_LABEL
from prefect_vertex_launch.core.vertex_types import JobState


class LaunchState(StrEnum):
    """Where one launch is on its way."""

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
