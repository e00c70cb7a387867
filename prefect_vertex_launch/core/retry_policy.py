"""Which attempt comes after those that have ended: whether a run is launched again, and how.

    an attempt ended as        what comes next
    preempted, internal        the same plan again                       counts as a relaunch
    capacity, quota            the next plan                             does not count
                               the last plan again, if it was the last   counts as a relaunch
    queueing-timeout           the next plan, if there is one            does not count
    anything else              nothing: another try would end the same way

A plan is one way to run the job: plan 0 is the queue's own configuration, plan n its n-th fallback. A
plan is never gone back to. Everything follows from how the attempts ended, which Vertex AI remembers
in their jobs: a later process counts on where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prefect_vertex_launch.core.diagnosis import Category
from prefect_vertex_launch.core.states import JobRecord, LaunchState, attempt_number

__all__ = [
    "Attempt",
    "Policy",
    "attempt_number",
    "by_attempt",
    "current_attempt",
    "next_attempt",
    "was_queueing_timeout",
]

_INFRASTRUCTURE: Final = frozenset({Category.PREEMPTED, Category.INTERNAL})
_SHORTAGE: Final = frozenset({Category.CAPACITY, Category.QUOTA})


@dataclass(frozen=True, slots=True)
class Policy:
    """How many second chances a run has: relaunches in all, and plans (1 + the number of fallbacks).

    There are never more than `max_relaunches + plans` attempts.
    """

    max_relaunches: int
    plans: int = 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """One CustomJob of a launch: its number from 1 on, and its plan, 0 for the queue's own."""

    number: int
    plan: int


def next_attempt(ended: Sequence[Category], policy: Policy) -> Attempt | None:
    """Return the attempt that follows those that `ended` (oldest first), or None if none does.

    With none ended it is the first one.
    """
    attempt, is_over = _fold(ended, policy)
    return None if is_over else attempt


def current_attempt(ended: Sequence[Category], policy: Policy) -> Attempt:
    """Return the attempt to which `ended` leads: the one that follows, or the last one if none does."""
    attempt, _ = _fold(ended, policy)
    return attempt


def was_queueing_timeout(job: JobRecord, queueing_timeout_seconds: float | None) -> bool:
    """Tell from a job alone whether it was cancelled here because it had waited for too long.

    So it is for a cancelled job that never started and had waited for the queueing timeout: whoever
    else cancels a job that late would have seen it cancelled anyway.
    """
    if queueing_timeout_seconds is None or job.launch_state is not LaunchState.CANCELLED:
        return False
    if job.start_time is not None or job.create_time is None or job.end_time is None:
        return False
    return (job.end_time - job.create_time).total_seconds() >= queueing_timeout_seconds


def by_attempt(jobs: Iterable[JobRecord]) -> dict[int, tuple[JobRecord, ...]]:
    """Return the jobs of one item by the number of their attempt, lowest number first."""
    groups: dict[int, list[JobRecord]] = {}
    for job in jobs:
        groups.setdefault(job.attempt, []).append(job)
    return {number: tuple(groups[number]) for number in sorted(groups)}


def _fold(ended: Sequence[Category], policy: Policy) -> tuple[Attempt, bool]:
    """Return the attempt that all of `ended` leads to, and whether the launch is over with it."""
    attempt, relaunches = Attempt(number=1, plan=0), 0
    for category in ended:
        has_next_plan = attempt.plan + 1 < policy.plans
        if category in _SHORTAGE | {Category.QUEUEING_TIMEOUT} and has_next_plan:
            attempt = Attempt(attempt.number + 1, attempt.plan + 1)
        elif category in _INFRASTRUCTURE | _SHORTAGE and relaunches < policy.max_relaunches:
            relaunches += 1
            attempt = Attempt(attempt.number + 1, attempt.plan)
        else:
            return attempt, True
    return attempt, False
