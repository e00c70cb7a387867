from __future__ import annotations

import pytest

from prefect_vertex_launch.core.states import (
    STATE_OF_JOB,
    TERMINAL,
    TRANSITIONS,
    JobRecord,
    LaunchState,
    advance,
    state_of_job,
)
from prefect_vertex_launch.core.vertex_types import JobState

JOBS = "projects/1/locations/us-central1/customJobs"


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
    reached, edge = {LaunchState.CLAIMED}, {LaunchState.CLAIMED}
    while edge:
        edge = {to for state in edge for to in TRANSITIONS[state]} - reached
        reached |= edge
    assert reached == set(LaunchState)
    assert all(TRANSITIONS[state] & TERMINAL for state in set(LaunchState) - TERMINAL)


def test_a_job_that_vanished_is_lost():
    assert JobRecord(f"{JOBS}/7", JobState.JOB_STATE_RUNNING, is_gone=True).launch_state is LaunchState.LOST
