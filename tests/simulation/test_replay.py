"""What a violation prints is a test that fails in the same way."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.simulation.auditor import Auditor
from tests.simulation.faults import Loss
from tests.simulation.scripts import SCRIPTS, End, Script
from tests.simulation.simulate import Change, play, simulate, sit_out
from tests.simulation.violation import Violation, require
from tests.simulation.world import Crash, Moment

FAILURES: list[Any] = [
    partial(simulate, 3, items=5),
    partial(play, (Script(ends=(End.PREEMPTION, End.SUCCESS), run_seconds=900.0),)),
    partial(play, SCRIPTS["happy"], crash=Crash(9, Moment.UNANSWERED), lag_seconds=2.0, change=Change.REGION),
    pytest.param(partial(sit_out, ["vertex"], Loss.KEY, 0.1), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_violation_happens_again_in_the_test_that_it_prints(
    failure: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Auditor, "look", mistake_any_job)
    with pytest.raises(Violation) as first:
        failure()

    with pytest.raises(Violation) as second:
        run(printed_test(str(first.value)))

    assert str(second.value) == str(first.value)


@pytest.mark.parametrize("what", [KeyError("a slip"), AssertionError("a slip"), RuntimeError("a slip")])
def test_what_no_invariant_is_about_is_told_in_the_same_way(
    what: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slip(*_: Any) -> None:
        raise what

    monkeypatch.setattr(Auditor, "at_end", slip)

    with pytest.raises(Violation, match=r"something nobody foresaw: .*a slip") as first:
        play(SCRIPTS["happy"])
    with pytest.raises(Violation) as second:
        run(printed_test(str(first.value)))

    assert str(second.value) == str(first.value)


def mistake_any_job(auditor: Auditor) -> None:
    require(not auditor._vertex.jobs, 2, "there is a job")


def printed_test(told: str) -> str:
    found = re.search(r"^from tests\..*?(?=\n\nThe last effects:)", told, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]


def run(module: str) -> None:
    names: dict[str, Any] = {}
    exec(module, names)
    names["test_the_invariants_hold"]()
