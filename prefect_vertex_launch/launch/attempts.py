"""The attempts of a launch: which one its jobs show to be under way, and which one follows.

An attempt is one CustomJob. What came before is read from Vertex AI each time, so a process that takes a
launch over counts on where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prefect_vertex_launch.core.diagnosis import Category, Diagnosis, diagnose
from prefect_vertex_launch.core.duplicates import age
from prefect_vertex_launch.core.retry_policy import (
    Attempt,
    Policy,
    by_attempt,
    current_attempt,
    next_attempt,
    was_queueing_timeout,
)
from prefect_vertex_launch.core.states import JobRecord, Requester, StopRequest
from prefect_vertex_launch.launch.launch import Launch


def diagnose_attempt(launch: Launch, job: JobRecord) -> Diagnosis:
    """Return why an attempt's job ended, whoever watched it then."""
    stop = launch.stop if launch.job is not None and launch.job.job_id == job.job_id else None
    if stop is None and was_queueing_timeout(job, launch.context.block.queueing_timeout_seconds):
        since = job.end_time or launch.context.clock.now()
        stop = StopRequest(Requester.QUEUEING_TIMEOUT, since, grace_seconds=0.0)
    return diagnose(job, stop=stop)


def begin_next(launch: Launch) -> bool:
    """Turn to the attempt that follows the one that has just ended; False if none does."""
    assert launch.job is not None
    ended = (*launch.ended, launch.job)
    if launch.item.job_name or launch.is_unclaimed or (attempt := following(launch, ended)) is None:
        return False
    launch.waited.start_over()
    launch.begin(attempt, ended)
    return True


def following(launch: Launch, ended: Sequence[JobRecord]) -> Attempt | None:
    """Return the attempt that follows those whose jobs have ended (oldest first), or None if none does."""
    if launch.is_stopped_by_someone:
        return None
    return next_attempt(_categories(launch, ended), _policy(launch))


def stand_at(launch: Launch, earlier: Sequence[JobRecord]) -> None:
    """Turn to the attempt that comes after those of these jobs; what was asked of it stays asked."""
    stop = launch.stop
    attempt = current_attempt(_categories(launch, earlier), _policy(launch))
    launch.begin(attempt, tuple(earlier))
    if stop is not None:
        launch.request_stop(stop)


def stand_before(launch: Launch, job: JobRecord, jobs: Iterable[JobRecord]) -> None:
    """Turn to the attempt of a job that is under way, after the attempts that its item had before."""
    stand_at(launch, ended_of(other for other in jobs if other.attempt < job.attempt))


def ended_of(jobs: Iterable[JobRecord]) -> list[JobRecord]:
    """Return one job for each attempt, oldest attempt first; of duplicates the older one speaks."""
    return [min(attempt, key=age) for attempt in by_attempt(jobs).values()]


def _categories(launch: Launch, ended: Sequence[JobRecord]) -> list[Category]:
    return [diagnose_attempt(launch, job).category for job in ended]


def _policy(launch: Launch) -> Policy:
    return Policy(max_relaunches=launch.context.block.max_relaunches, plans=launch.plans)
