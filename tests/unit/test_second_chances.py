"""Which ends of a job get the run another attempt, with which plan, and how often."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_vertex_launch.core.diagnosis import Category
from prefect_vertex_launch.core.retry_policy import (
    Attempt,
    Policy,
    attempt_number,
    by_attempt,
    current_attempt,
    next_attempt,
    was_queueing_timeout,
)
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.core.vertex_types import JobState

JOBS = "projects/1/locations/us-central1/customJobs"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

PREEMPTED, INTERNAL = Category.PREEMPTED, Category.INTERNAL
CAPACITY, QUOTA, QUEUEING = Category.CAPACITY, Category.QUOTA, Category.QUEUEING_TIMEOUT
AGAIN = {PREEMPTED, INTERNAL, CAPACITY, QUOTA}

categories = st.lists(st.sampled_from([*AGAIN, QUEUEING, *AGAIN, Category.USER_CODE]), max_size=12)
policies = st.builds(Policy, max_relaunches=st.integers(0, 4), plans=st.integers(1, 4))


def test_a_launch_begins_with_the_queues_own_plan():
    assert next_attempt([], Policy(max_relaunches=0, plans=1)) == Attempt(number=1, plan=0)
    assert current_attempt([], Policy(max_relaunches=0, plans=1)) == Attempt(number=1, plan=0)


@pytest.mark.parametrize("category", [PREEMPTED, INTERNAL])
def test_an_end_by_the_infrastructure_is_launched_again_as_it_was(category):
    policy = Policy(max_relaunches=2, plans=3)
    assert next_attempt([category], policy) == Attempt(2, plan=0)
    assert next_attempt([category] * 2, policy) == Attempt(3, plan=0)
    assert next_attempt([category] * 3, policy) is None


@pytest.mark.parametrize("category", [CAPACITY, QUOTA])
def test_a_shortage_leads_to_the_fallbacks_and_then_to_the_last_one_again(category):
    policy = Policy(max_relaunches=1, plans=3)
    assert [next_attempt([category] * ended, policy) for ended in range(5)] == [
        Attempt(1, 0), Attempt(2, 1), Attempt(3, 2), Attempt(4, 2), None,
    ]  # fmt: skip


def test_too_long_a_wait_leads_to_the_fallbacks_and_then_to_the_end():
    policy = Policy(max_relaunches=5, plans=2)
    assert next_attempt([QUEUEING], policy) == Attempt(2, 1)
    assert next_attempt([QUEUEING, QUEUEING], policy) is None


def test_fallbacks_are_not_counted_as_relaunches():
    policy = Policy(max_relaunches=1, plans=2)
    assert next_attempt([CAPACITY, PREEMPTED], policy) == Attempt(3, 1)
    assert next_attempt([CAPACITY, PREEMPTED, PREEMPTED], policy) is None


@pytest.mark.parametrize("category", sorted(set(Category) - AGAIN - {QUEUEING}))
def test_any_other_end_is_final(category):
    policy = Policy(max_relaunches=9, plans=9)
    assert next_attempt([category], policy) is None
    assert next_attempt([PREEMPTED, category], policy) is None
    assert current_attempt([PREEMPTED, category], policy) == Attempt(2, 0)


def test_without_relaunches_only_the_fallbacks_are_left():
    policy = Policy(max_relaunches=0, plans=2)
    assert next_attempt([PREEMPTED], policy) is None
    assert next_attempt([QUOTA], policy) == Attempt(2, 1)
    assert next_attempt([QUOTA, QUOTA], policy) is None


@given(categories, policies)
def test_there_are_never_more_attempts_than_relaunches_and_plans(ended, policy):
    following = next_attempt(ended, policy)
    assert current_attempt(ended, policy).number <= policy.max_relaunches + policy.plans
    assert following is None or following.number == len(ended) + 1


@given(categories, policies)
def test_what_an_earlier_process_decided_is_what_a_later_one_finds(ended, policy):
    """Attempt by attempt, the plan never goes back, and an end stays one."""
    attempts = [next_attempt(ended[:count], policy) for count in range(len(ended) + 1)]
    taken = [attempt for attempt in attempts if attempt]
    assert attempts == taken + [None] * (len(attempts) - len(taken))
    assert [attempt.number for attempt in taken] == list(range(1, len(taken) + 1))
    assert current_attempt(ended, policy) == taken[-1]
    plans = [attempt.plan for attempt in taken]
    assert plans == sorted(plans)
    assert all(later - earlier in {0, 1} for earlier, later in itertools.pairwise(plans))
    assert plans[-1] < policy.plans


def cancelled(waited_seconds: float, *, started: bool = False, **changes: object) -> JobRecord:
    ended = NOW + timedelta(seconds=waited_seconds)
    times = {"create_time": NOW, "start_time": NOW if started else None, "end_time": ended, **changes}
    return JobRecord(f"{JOBS}/1", JobState.JOB_STATE_CANCELLED, **times)


def test_a_job_that_waited_too_long_is_known_by_its_times():
    assert was_queueing_timeout(cancelled(600), 600)
    assert not was_queueing_timeout(cancelled(599), 600)


def test_a_job_that_someone_cancelled_is_no_queueing_timeout():
    assert not was_queueing_timeout(cancelled(700, started=True), 600)
    assert not was_queueing_timeout(cancelled(700), None)
    assert not was_queueing_timeout(cancelled(700, create_time=None), 600)
    assert not was_queueing_timeout(cancelled(700, end_time=None), 600)
    failed = JobRecord(
        f"{JOBS}/1", JobState.JOB_STATE_FAILED, create_time=NOW, end_time=NOW + timedelta(hours=1)
    )
    assert not was_queueing_timeout(failed, 600)


@pytest.mark.parametrize(
    ("label", "number"),
    [
        ("1", 1),
        ("2", 2),
        ("17", 17),
        ("0", 1),
        ("-2", 1),
        ("", 1),
        ("x", 1),
        ("2.0", 1),
        ("٣", 1),
        ("9" * 50, 1),
    ],
)
def test_the_attempt_is_read_from_its_label(label, number):
    assert attempt_number({"launch-attempt": label}) == number


def test_a_job_without_the_label_is_a_first_attempt():
    assert attempt_number({"launch-item": "2"}) == 1


def test_jobs_are_told_apart_by_attempt():
    def job(number: int, **labels: str) -> JobRecord:
        return JobRecord(f"{JOBS}/{number}", JobState.JOB_STATE_FAILED, labels=labels)

    first, second = job(1), job(2, **{"launch-attempt": "2"})
    duplicate = job(3, **{"launch-attempt": "1"})
    assert by_attempt([second, first, duplicate]) == {1: (first, duplicate), 2: (second,)}
    assert list(by_attempt([second, first])) == [1, 2]
    assert by_attempt([]) == {}
