"""The budget of calls, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_vertex_launch.vertex.call_budget import (
    CALLS_PER_MINUTE,
    PASSED_OVER_AT_MOST,
    SUBMISSIONS_PER_MINUTE,
    Call,
    CallBudget,
    shared_budget,
)
from tests.adapters.modelled_vertex import LoopClock, in_virtual_time, most_in_a_window

PAUSES = [0.0, 0.0, 0.0, 0.5, 7.0, 31.0, 59.999, 60.0, 61.0]

Sent = list[tuple[float, Call, int]]


def sent_for(arrivals: list[tuple[float, Call]], **limits: int) -> Sent:
    """Return when each call was let pass, in this order; an arrival is a pause since the one before."""

    async def main() -> Sent:
        budget, sent = CallBudget(clock=LoopClock(), **limits), []

        async def send(number: int, call: Call) -> None:
            sent.append((await budget.take(call), call, number))

        async with asyncio.TaskGroup() as group:
            for number, (pause_seconds, call) in enumerate(arrivals):
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)
                group.create_task(send(number, call))
        return sent

    return in_virtual_time(main())


def times(sent: Sent, *calls: Call) -> list[float]:
    return [time for time, call, _ in sent if call in calls or not calls]


def test_what_fits_passes_at_once():
    arrivals = [(0.0, Call.LIST)] * (CALLS_PER_MINUTE - SUBMISSIONS_PER_MINUTE)
    sent = sent_for([*arrivals, *[(0.0, Call.CREATE)] * SUBMISSIONS_PER_MINUTE])
    assert (CALLS_PER_MINUTE, SUBMISSIONS_PER_MINUTE) == (300, 50)
    assert set(times(sent)) == {0.0}


def test_a_storm_is_as_fast_as_the_budget_and_no_faster():
    sent = sent_for([(0.0, Call.GET)] * 1000)
    assert [round(time) for time in sorted(set(times(sent)))] == [0, 60, 120, 180]
    assert most_in_a_window(times(sent)) == 300


def test_the_window_slides():
    late = [(55.0, Call.CREATE), *[(0.0, Call.CREATE)] * 49]
    sent = sent_for([(0.0, Call.GET), *late, (6.0, Call.CREATE), *[(0.0, Call.CREATE)] * 49])
    assert most_in_a_window(times(sent, Call.CREATE)) == 50
    assert [round(time) for time in sorted(set(times(sent, Call.CREATE)))] == [55, 115]


def test_submissions_that_wait_hold_up_nothing_else():
    sent = sent_for([*[(0.0, Call.CREATE)] * 60, (0.0, Call.LIST), (0.0, Call.GET)])
    assert times(sent, Call.LIST, Call.GET) == [0.0, 0.0]
    assert Counter(round(time) for time in times(sent, Call.CREATE)) == {0: 50, 60: 10}


def test_who_comes_later_may_go_sooner_than_a_submission_that_waits():
    sent = sent_for(
        [(0.0, Call.GET), (30.0, Call.CREATE), (0.0, Call.CREATE), (1.0, Call.GET), (1.0, Call.GET)],
        calls_per_minute=3,
        submissions_per_minute=1,
    )
    assert [(round(time), number) for time, _, number in sent] == [(0, 0), (30, 1), (31, 3), (60, 4), (90, 2)]


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(PAUSES), st.sampled_from(Call)), max_size=80),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_no_window_ever_holds_more_and_everyone_passes_in_the_order_of_its_kind(arrivals, calls, submissions):
    sent = sent_for(arrivals, calls_per_minute=calls, submissions_per_minute=submissions)
    assert len(sent) == len(arrivals)
    assert most_in_a_window(times(sent)) <= calls
    assert most_in_a_window(times(sent, Call.CREATE)) <= submissions
    for kind in Call:
        in_order = sorted((number, time) for time, call, number in sent if call is kind)
        passed = [time for _, time in in_order]
        assert passed == sorted(passed)


def test_agents_that_join_at_full_speed_and_are_noticed_late_never_send_more_than_google_allows():
    async def main() -> list[float]:
        sent: list[float] = []

        async def storm(budget: CallBudget) -> None:
            while True:
                sent.append(await budget.take(Call.LIST))

        budgets: list[CallBudget] = []
        storms: list[asyncio.Task[None]] = []
        for count in range(1, 7):
            newcomer = CallBudget(clock=LoopClock())
            newcomer.narrow(2 / (count + 1))
            storms.append(asyncio.create_task(storm(newcomer)))
            await asyncio.sleep(30)
            for budget in budgets:
                budget.narrow(2 / (count + 1))
            budgets.append(newcomer)
            await asyncio.sleep(30)
        await asyncio.sleep(600)
        for task in storms:
            task.cancel()
        return sent

    sent = in_virtual_time(main())
    assert most_in_a_window(sent) <= 600
    assert sum(time < 60 for time in sent) == 300
    # Six at work send a seventh of all calls each.
    assert most_in_a_window([time for time in sent if time >= 420]) == 6 * 85


def test_a_share_that_grows_lets_those_pass_who_wait():
    async def main() -> list[float]:
        budget = CallBudget(clock=LoopClock())
        budget.narrow(1 / 3)
        storm = [asyncio.create_task(budget.take(Call.GET)) for _ in range(300)]
        await asyncio.sleep(10)
        budget.narrow(1.0)
        return await asyncio.gather(*storm)

    assert Counter(in_virtual_time(main())) == {0.0: 100, 10.0: 200}


def test_cancels_and_reads_pass_before_a_storm_that_came_first():
    storm = [(0.0, call) for call in (Call.LIST, Call.CREATE) for _ in range(100)]
    sent = sent_for([*storm, (1.0, Call.GET), (0.0, Call.CANCEL)], calls_per_minute=10)
    late = {call: sent.index(entry) for entry in sent for call in (Call.CANCEL, Call.GET) if entry[1] is call}
    assert late[Call.CANCEL] in range(10, 12)
    assert late[Call.GET] in range(10, 13)


@pytest.mark.parametrize("storm", Call)
def test_no_storm_starves_another_kind(storm):
    others = [(1.0 if call is next(iter(Call)) else 0.0, call) for call in Call if call is not storm]
    sent = sent_for([*[(0.0, storm)] * 60, *others], calls_per_minute=10, submissions_per_minute=10)
    order = [call for _, call, _ in sent]
    assert all(order.index(call) < 10 + PASSED_OVER_AT_MOST + len(Call) for call in Call)


def test_who_leaves_the_line_takes_no_turn():
    async def main() -> list[float]:
        budget = CallBudget(clock=LoopClock(), calls_per_minute=1)
        await budget.take(Call.GET)
        left = [asyncio.create_task(budget.take(Call.GET)) for _ in range(5)]
        stays = asyncio.create_task(budget.take(Call.GET))
        await asyncio.sleep(1)
        for task in left:
            task.cancel()
        assert round(await stays) == 60
        alone = asyncio.create_task(budget.take(Call.GET))
        await asyncio.sleep(1)
        alone.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "no timer runs for nobody"
        return [await budget.take(Call.GET)]

    assert [round(time) for time in in_virtual_time(main())] == [120]


def test_a_refusal_for_the_rate_halves_it_for_everyone_and_it_grows_back():
    async def main() -> list[int]:
        budget = CallBudget(clock=LoopClock(), calls_per_minute=100)

        async def passed_in(seconds: float) -> int:
            storm = [asyncio.create_task(budget.take(Call.GET)) for _ in range(500)]
            await asyncio.sleep(seconds)
            passed = sum(task.done() for task in storm)
            for task in storm:
                task.cancel()
            return passed

        sent_at = [await budget.take(Call.GET), await budget.take(Call.GET)]
        await asyncio.sleep(1)
        for time in sent_at:
            budget.slow_down(Call.GET, time)
        await asyncio.sleep(60)
        slowed = await passed_in(0.5)
        await asyncio.sleep(700)
        return [slowed, await passed_in(0.5)]

    slowed, whole = in_virtual_time(main())
    assert slowed == 60, "half, and a tenth that has grown back in a minute"
    assert whole == 100


def test_refusals_without_end_leave_a_trickle():
    async def main() -> list[float]:
        budget, passed = CallBudget(clock=LoopClock(), calls_per_minute=32), []
        for _ in range(40):
            passed.append(sent_at := await budget.take(Call.GET))
            await asyncio.sleep(0.3)
            budget.slow_down(Call.GET, sent_at)
        return passed

    passed = in_virtual_time(main())
    assert most_in_a_window(passed[10:]) in range(1, 7)
    assert passed[-1] < 40 * 60


def test_a_refused_read_leaves_the_submissions_as_they_are_and_a_refused_create_slows_both():
    async def submitted_after_refusal_of(call: Call) -> int:
        budget = CallBudget(clock=LoopClock(), calls_per_minute=100, submissions_per_minute=10)
        budget.slow_down(call, await budget.take(call))
        await asyncio.sleep(60)
        storm = [asyncio.create_task(budget.take(Call.CREATE)) for _ in range(10)]
        await asyncio.sleep(1)
        return sum(task.done() for task in storm)

    assert in_virtual_time(submitted_after_refusal_of(Call.GET)) == 10
    assert in_virtual_time(submitted_after_refusal_of(Call.CREATE)) == 6


def test_one_budget_for_a_project_and_region_and_the_lowest_numbers_hold():
    async def main() -> None:
        clock = LoopClock()
        one = shared_budget("e", "p", "us", clock=clock, calls_per_minute=9, submissions_per_minute=3)
        assert shared_budget("e", "p", "us", clock=clock, calls_per_minute=5) is one
        others = [("e", "p", "eu"), ("e", "q", "us"), ("f", "p", "us")]
        assert one not in [shared_budget(*other, clock=clock) for other in others]
        storm = [asyncio.create_task(one.take(call)) for call in [*[Call.CREATE] * 9, *[Call.GET] * 9]]
        await asyncio.sleep(1)
        assert [task.done() for task in storm] == [*[True] * 3, *[False] * 6, *[True] * 2, *[False] * 7]

    in_virtual_time(main())
