from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from prefect_vertex_launch.core.states import (
    STATE_OF_JOB,
    TERMINAL,
    TRANSITIONS,
    Cancel,
    Claim,
    Desired,
    GiveUp,
    ItemState,
    JobRecord,
    LaunchState,
    Observed,
    Report,
    Requester,
    StopRequest,
    Submit,
    Wait,
    advance,
    decide,
    state_of_job,
)
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


def test_every_member_of_job_state_is_mapped():
    assert set(STATE_OF_JOB) == set(JobState)


def test_the_terminal_job_states_are_these_and_no_others():
    assert {state.name for state in JobState if state_of_job(state) in TERMINAL} == {
        "JOB_STATE_SUCCEEDED",
        "JOB_STATE_FAILED",
        "JOB_STATE_CANCELLED",
        "JOB_STATE_EXPIRED",
        "JOB_STATE_PARTIALLY_SUCCEEDED",
    }


@pytest.mark.parametrize("state", [0, 42, -1, 2**31 - 1])
def test_an_unknown_state_is_not_an_end(state):
    assert state_of_job(state) is LaunchState.SUBMITTED
    assert not JobRecord("n", state).is_terminal


def test_states_are_mapped_by_member_and_by_number_alike():
    assert {state_of_job(int(state)) for state in JobState} == set(STATE_OF_JOB.values())
    assert state_of_job(4) is LaunchState.SUCCEEDED


ENDS_OF_JOBS = "succeeded partially_succeeded failed cancelled expired lost"
WAITING = "queued pending running paused cancelling"
FOLLOWERS = {
    "popped": "claimed refused",
    "claimed": f"submitted refused {WAITING} {ENDS_OF_JOBS}",
    "submitted": f"{WAITING} {ENDS_OF_JOBS}",
    "queued": f"pending running paused cancelling {ENDS_OF_JOBS}",
    "pending": f"queued running paused cancelling {ENDS_OF_JOBS}",
    "running": f"queued pending paused cancelling {ENDS_OF_JOBS}",
    "paused": f"queued pending running cancelling {ENDS_OF_JOBS}",
    "cancelling": ENDS_OF_JOBS,
}


@pytest.mark.parametrize("current", LaunchState)
@pytest.mark.parametrize("to", LaunchState)
def test_the_whole_transition_table(current, to):
    allowed = to is current or to.value in FOLLOWERS.get(current.value, "").split()
    if allowed:
        assert advance(current, to) is to
    else:
        with pytest.raises(ValueError, match=f"from {current.value} to {to.value}"):
            advance(current, to)


def test_every_state_has_a_row_and_terminal_states_lead_nowhere():
    assert set(TRANSITIONS) == set(LaunchState)
    assert {state for state, followers in TRANSITIONS.items() if not followers} == TERMINAL


def test_every_state_can_be_reached_and_every_live_state_can_end():
    reached, edge = {LaunchState.POPPED}, {LaunchState.POPPED}
    while edge:
        edge = {to for state in edge for to in TRANSITIONS[state]} - reached
        reached |= edge
    assert reached == set(LaunchState)
    assert all(TRANSITIONS[state] & TERMINAL for state in set(LaunchState) - TERMINAL)


STOP = StopRequest(Requester.WANDB, NOW - timedelta(seconds=30), grace_seconds=60)
LATE_STOP = StopRequest(Requester.PREFECT, NOW - timedelta(seconds=60), grace_seconds=60)
OLD, YOUNG = job(1, age_seconds=60), job(2, age_seconds=1)
DONE = job(3, JobState.JOB_STATE_SUCCEEDED, age_seconds=90)
CANCELLING = job(4, JobState.JOB_STATE_CANCELLING)

DECISIONS = {
    "a fresh item is claimed": (ItemState.LEASED, None, (), None, Claim()),
    "an item not read yet is claimed": (None, None, (), None, Claim()),
    "an item in a state unknown here is claimed, and W&B decides": (
        ItemState.UNKNOWN,
        None,
        (),
        None,
        Claim(),
    ),
    "our claimed item without a job is submitted": (ItemState.CLAIMED, "run1", (), None, Submit()),
    "a live job is waited for": (ItemState.CLAIMED, "run1", (OLD,), None, Wait(OLD)),
    "a job in an unknown state is waited for": (
        ItemState.CLAIMED,
        "run1",
        (job(9, 42),),
        None,
        Wait(job(9, 42)),
    ),
    "a finished job is reported": (ItemState.CLAIMED, "run1", (DONE,), None, Report(DONE)),
    "a live job counts more than a finished one": (ItemState.CLAIMED, "run1", (DONE, OLD), None, Wait(OLD)),
    "a stop is left to the run during its grace": (ItemState.CLAIMED, "run1", (OLD,), STOP, Wait(OLD)),
    "after its grace the job is cancelled": (
        ItemState.CLAIMED,
        "run1",
        (OLD,),
        LATE_STOP,
        Cancel(OLD, "its end was requested by prefect"),
    ),
    "a job that is being cancelled is waited for": (
        ItemState.CLAIMED,
        "run1",
        (CANCELLING,),
        LATE_STOP,
        Wait(CANCELLING),
    ),
    "a finished job is reported, stop or not": (ItemState.CLAIMED, "run1", (DONE,), LATE_STOP, Report(DONE)),
    "nothing is started for an item that is to stop": (
        ItemState.CLAIMED,
        "run1",
        (),
        STOP,
        GiveUp("its end was requested by wandb before there was a job"),
    ),
    "of two live jobs the younger is cancelled": (
        ItemState.CLAIMED,
        "run1",
        (YOUNG, OLD),
        None,
        Cancel(YOUNG, f"it duplicates the older job {OLD.name} of the same item"),
    ),
    "someone else's item is left alone": (
        ItemState.CLAIMED,
        "other",
        (),
        None,
        GiveUp("the item was claimed as run other"),
    ),
    "someone else's job is left alone, even to stop it": (
        ItemState.CLAIMED,
        "other",
        (OLD, YOUNG),
        LATE_STOP,
        GiveUp("the item was claimed as run other"),
    ),
    "an item that failed at W&B is not started": (
        ItemState.FAILED,
        "run1",
        (),
        None,
        GiveUp("the item has failed at W&B"),
    ),
}


@pytest.mark.parametrize(
    ("item_state", "run_id", "jobs", "stop", "decision"), DECISIONS.values(), ids=DECISIONS
)
def test_what_to_do_next(item_state, run_id, jobs, stop, decision):
    assert decide(Observed(item_state, run_id, jobs), Desired("run1", stop), NOW) == decision


@pytest.mark.parametrize("reverse", [False, True])
def test_of_two_jobs_born_together_the_higher_number_is_the_younger(reverse):
    jobs = [job(9), job(10)]
    decision = decide(
        Observed(ItemState.CLAIMED, "run1", tuple(reversed(jobs) if reverse else jobs)), Desired("run1"), NOW
    )
    assert isinstance(decision, Cancel)
    assert decision.job.job_id == "10"


FIRST_ENDED = job(1, JobState.JOB_STATE_FAILED, age_seconds=90, attempt=1)
SECOND = job(2, age_seconds=30, attempt=2)
SECOND_ENDED = job(2, JobState.JOB_STATE_SUCCEEDED, age_seconds=30, attempt=2)
STRAY = job(9, age_seconds=5, attempt=1)
OLD_STRAY = job(9, age_seconds=300, attempt=1)
CANCELLING_STRAY = job(9, JobState.JOB_STATE_CANCELLING, age_seconds=5, attempt=1)

ATTEMPTS = {
    "the newest attempt's job is waited for": ((FIRST_ENDED, SECOND), Desired("run1"), Wait(SECOND)),
    "the newest attempt's end is told": ((FIRST_ENDED, SECOND_ENDED), Desired("run1"), Report(SECOND_ENDED)),
    "an attempt that is wanted and not there is made": (
        (FIRST_ENDED,),
        Desired("run1", attempt=2),
        Submit(),
    ),
    "an attempt that is there already is not made again": (
        (FIRST_ENDED, SECOND),
        Desired("run1", attempt=2),
        Wait(SECOND),
    ),
    "nothing is made for a run that is to stop": (
        (FIRST_ENDED,),
        Desired("run1", STOP, attempt=2),
        GiveUp("its end was requested by wandb before there was a job"),
    ),
    "a job left over from an older attempt is cancelled, though it is the younger one": (
        (FIRST_ENDED, SECOND, STRAY),
        Desired("run1"),
        Cancel(STRAY, "it is left over from attempt 1; this is attempt 2"),
    ),
    "a job left over from an older attempt is cancelled, though it is the older one": (
        (SECOND, OLD_STRAY),
        Desired("run1"),
        Cancel(OLD_STRAY, "it is left over from attempt 1; this is attempt 2"),
    ),
    "a job left over is cancelled before the end is told": (
        (SECOND_ENDED, STRAY),
        Desired("run1"),
        Cancel(STRAY, "it is left over from attempt 1; this is attempt 2"),
    ),
    "a job left over is cancelled once": (
        (FIRST_ENDED, SECOND, CANCELLING_STRAY),
        Desired("run1"),
        Wait(SECOND),
    ),
    "no attempt begins while a job of an older one still ends": (
        (FIRST_ENDED, CANCELLING_STRAY),
        Desired("run1", attempt=2),
        Wait(CANCELLING_STRAY),
    ),
}


@pytest.mark.parametrize(("jobs", "desired", "decision"), ATTEMPTS.values(), ids=ATTEMPTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_what_to_do_next_with_several_attempts(jobs, desired, decision, reverse):
    jobs = tuple(reversed(jobs)) if reverse else jobs
    assert decide(Observed(ItemState.CLAIMED, "run1", jobs), desired, NOW) == decision


def test_a_duplicate_that_is_being_cancelled_is_not_cancelled_again():
    duplicate = job(3, JobState.JOB_STATE_CANCELLING)
    decision = decide(Observed(ItemState.CLAIMED, "run1", (OLD, duplicate)), Desired("run1"), NOW)
    assert decision == Wait(OLD)


def test_decide_is_total():
    """Every combination of item state, claimant, up to two jobs in any state and stop has an answer."""
    answers = (Claim, Submit, Wait, Cancel, Report, GiveUp)
    states = [None, *JobState, 42]
    for item_state in [None, *ItemState]:
        for run_id in (None, "run1", "other"):
            for stop in (None, STOP, LATE_STOP):
                for first in states:
                    for second in states:
                        jobs = tuple(
                            JobRecord(
                                f"{JOBS}/{number}", state, labels={"launch-attempt": str(number % 2 + 1)}
                            )
                            for number, state in enumerate((first, second))
                            if state is not None
                        )
                        decision = decide(Observed(item_state, run_id, jobs), Desired("run1", stop), NOW)
                        assert isinstance(decision, answers)


def test_a_job_that_vanished_is_lost():
    assert JobRecord(f"{JOBS}/7", JobState.JOB_STATE_RUNNING, is_gone=True).launch_state is LaunchState.LOST
