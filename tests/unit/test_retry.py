from __future__ import annotations

from datetime import UTC, datetime
from random import Random

import pytest

from prefect_vertex_launch.core.errors import LaunchError, NotFound, OutcomeUnknown, Problem, Transient
from prefect_vertex_launch.core.retry import ATTEMPTS, Backoff, retrying


class SleepRecorder:
    """A clock on which sleeping takes no time and is written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Call:
    """Raises the given errors one after the other, then returns 'done'."""

    def __init__(self, *errors: LaunchError) -> None:
        self.errors = list(errors)
        self.count = 0

    async def __call__(self) -> str:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_a_transient_failure_is_tried_again():
    clock, call = SleepRecorder(), Call(Transient("1"), Transient("2"))
    assert await retrying(call, clock=clock, random=Random(1)) == "done"
    assert call.count == 3
    assert len(clock.slept) == 2


async def test_the_last_failure_is_raised_after_the_bound():
    clock, call = SleepRecorder(), Call(*(Transient(str(number)) for number in range(10)))
    with pytest.raises(Transient, match=str(ATTEMPTS - 1)):
        await retrying(call, clock=clock, random=Random(1))
    assert call.count == ATTEMPTS


async def test_pauses_are_drawn_below_a_growing_ceiling():
    pauses = []
    for seed in range(200):
        clock = SleepRecorder()
        call = Call(*(Transient("") for _ in range(ATTEMPTS - 1)))
        await retrying(call, clock=clock, random=Random(seed))
        pauses.append(clock.slept)
    for attempt, column in enumerate(zip(*pauses, strict=True)):
        ceiling = 0.5 * 2**attempt
        assert max(column) <= ceiling
        assert max(column) > ceiling * 0.8
        assert min(column) < ceiling * 0.2


async def test_a_pause_is_never_shorter_than_the_other_side_asked_for():
    clock = SleepRecorder()
    await retrying(Call(Transient("", retry_after_seconds=7.5)), clock=clock, random=Random(1))
    assert clock.slept == [7.5]


async def test_a_long_pause_is_left_to_the_caller():
    clock, call = SleepRecorder(), Call(Transient("", retry_after_seconds=3600))
    with pytest.raises(Transient):
        await retrying(call, clock=clock, random=Random(1))
    assert (call.count, clock.slept) == (1, [])


@pytest.mark.parametrize("error", [NotFound(Problem("x", "y")), OutcomeUnknown("z")])
async def test_what_a_repetition_cannot_cure_is_raised_at_once(error):
    call = Call(error)
    with pytest.raises(type(error)):
        await retrying(call, clock=SleepRecorder(), random=Random(1))
    assert call.count == 1


async def test_whoever_is_told_hears_of_each_failure_and_the_pause_after_it():
    clock, told = SleepRecorder(), list[tuple[str, float]]()
    await retrying(
        Call(Transient("1"), Transient("2")),
        clock=clock,
        backoff=Backoff(2.0, 60.0),
        tell=lambda error, seconds: told.append((str(error), seconds)),
    )
    assert [text for text, _ in told] == ["1", "2"]
    assert [seconds for _, seconds in told] == clock.slept


async def test_without_a_bound_a_call_is_tried_until_it_succeeds():
    clock, call = SleepRecorder(), Call(*(NotFound(Problem("x", "y")) for _ in range(50)))
    backoff = Backoff(1.0, 60.0)
    await retrying(call, clock=clock, backoff=backoff, attempts=None, retry_if=lambda _: True)
    assert call.count == 51
    assert max(clock.slept) <= 60.0
    assert min(clock.slept[10:]) >= 30.0


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_success():
    backoff = Backoff(10.0, 60.0, least_share=1.0)
    assert [backoff.next_seconds() for _ in range(5)] == [10.0, 20.0, 40.0, 60.0, 60.0]
    backoff.reset()
    assert backoff.next_seconds() == 10.0


def test_a_pause_has_at_least_its_share_and_never_less_than_was_asked_for():
    drawn = [Backoff(10.0, 60.0, random=Random(seed)).next_seconds() for seed in range(200)]
    assert 5.0 <= min(drawn) < 6.0
    assert 9.0 < max(drawn) <= 10.0
    assert Backoff(10.0, 60.0).next_seconds(Transient("", retry_after_seconds=90.0)) == 90.0


def test_a_backoff_does_not_overflow_after_days_of_failures():
    backoff = Backoff(0.5, 300.0)
    assert all(backoff.next_seconds() <= 300.0 for _ in range(5000))
