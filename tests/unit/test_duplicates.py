"""Of the jobs of one item: which one speaks, and which one is too many."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations, product

import pytest

from prefect_vertex_launch.core.duplicates import Surplus, current_job, surplus
from prefect_vertex_launch.core.states import JobRecord, LaunchState
from prefect_vertex_launch.core.vertex_types import JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOBS = "projects/1/locations/us-central1/customJobs"


def job(
    number: int,
    state: JobState | int = JobState.JOB_STATE_RUNNING,
    age_seconds: float = 0,
    *,
    attempt: int | None = None,
) -> JobRecord:
    labels = {} if attempt is None else {"launch-attempt": str(attempt)}
    created = NOW - timedelta(seconds=age_seconds)
    return JobRecord(f"{JOBS}/{number}", state, create_time=created, labels=labels)


OLD, YOUNG = job(1, age_seconds=60), job(2, age_seconds=1)
DONE = job(3, JobState.JOB_STATE_SUCCEEDED, age_seconds=90)
CANCELLING = job(4, JobState.JOB_STATE_CANCELLING)
FIRST_ENDED = job(1, JobState.JOB_STATE_FAILED, age_seconds=90, attempt=1)
SECOND = job(2, age_seconds=30, attempt=2)
SECOND_ENDED = job(2, JobState.JOB_STATE_SUCCEEDED, age_seconds=30, attempt=2)
STRAY = job(9, age_seconds=5, attempt=1)
OLD_STRAY = job(9, age_seconds=300, attempt=1)
CANCELLING_STRAY = job(9, JobState.JOB_STATE_CANCELLING, age_seconds=5, attempt=1)

LEFT_OVER = "it is left over from attempt 1; this is attempt 2"
# The jobs, the one that speaks, and the one that is too many with its reason.
SCENES = {
    "without a job nobody speaks": ((), None, None),
    "a live job speaks": ((OLD,), OLD, None),
    "a job in an unknown state speaks": ((job(9, 42),), job(9, 42), None),
    "a finished job speaks": ((DONE,), DONE, None),
    "a live job speaks before a finished one": ((DONE, OLD), OLD, None),
    "a job that is being cancelled is waited for": ((CANCELLING,), CANCELLING, None),
    "of two live jobs the younger is too many": (
        (YOUNG, OLD),
        OLD,
        Surplus(YOUNG, f"it duplicates the older job {OLD.name} of the same item"),
    ),
    "a duplicate that is being cancelled is not cancelled again": ((OLD, CANCELLING), OLD, None),
    "of two jobs born together the higher number is the younger": (
        (job(9), job(10)),
        job(9),
        Surplus(job(10), f"it duplicates the older job {job(9).name} of the same item"),
    ),
    "of two finished jobs the older speaks": (
        (DONE, job(8, JobState.JOB_STATE_FAILED, age_seconds=10)),
        DONE,
        None,
    ),
    "the newest attempt's job speaks": ((FIRST_ENDED, SECOND), SECOND, None),
    "the newest attempt's end speaks": ((FIRST_ENDED, SECOND_ENDED), SECOND_ENDED, None),
    "what is left over from an older attempt goes, though it is the younger job": (
        (FIRST_ENDED, SECOND, STRAY),
        SECOND,
        Surplus(STRAY, LEFT_OVER),
    ),
    "what is left over from an older attempt goes, though it is the older job": (
        (SECOND, OLD_STRAY),
        SECOND,
        Surplus(OLD_STRAY, LEFT_OVER),
    ),
    "what is left over goes after the newest attempt has ended, too": (
        (SECOND_ENDED, STRAY),
        SECOND_ENDED,
        Surplus(STRAY, LEFT_OVER),
    ),
    "what is left over is cancelled once": ((FIRST_ENDED, SECOND, CANCELLING_STRAY), SECOND, None),
    "no attempt follows while a duplicate of the first one still ends": (
        (FIRST_ENDED, CANCELLING_STRAY),
        CANCELLING_STRAY,
        None,
    ),
}


@pytest.mark.parametrize(("jobs", "speaks", "too_many"), SCENES.values(), ids=SCENES)
def test_which_job_speaks_and_which_is_too_many(
    jobs: tuple[JobRecord, ...], speaks: JobRecord | None, too_many: Surplus | None
) -> None:
    for order in permutations(jobs):
        assert current_job(order) == speaks
        assert surplus(order) == too_many


def test_once_nothing_is_too_many_at_most_one_job_lives_that_nobody_cancels() -> None:
    """Whatever the states and attempts of three jobs: each surplus job that goes brings it nearer."""
    for states in product([*JobState, 42], repeat=3):
        for attempts in product((1, 2), repeat=3):
            jobs = {
                number: job(number, state, attempt=attempt)
                for number, (state, attempt) in enumerate(zip(states, attempts, strict=True))
            }
            while too_many := surplus(jobs.values()):
                number = int(too_many.job.job_id)
                jobs[number] = job(number, JobState.JOB_STATE_CANCELLING, attempt=too_many.job.attempt)
            live = [
                each
                for each in jobs.values()
                if not each.is_terminal and each.launch_state is not LaunchState.CANCELLING
            ]
            assert len(live) <= 1
            assert current_job(jobs.values()) in jobs.values()
