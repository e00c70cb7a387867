"""The watch over a round sees what must not be even for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.chaos.auditor import FlowRun, Job
from tests.chaos.watch import DRIFT_SECONDS, PASS_SECONDS, Sight, Watch

RUNNING, SUCCEEDED = "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"


def job(name: str, key: str = "key", attempt: str = "1", *, ended: bool = False) -> Job:
    return Job(name, key, attempt, SUCCEEDED if ended else RUNNING, 0.0, 1.0 if ended else None)


def sight(
    moment: float,
    *,
    items: Mapping[str, str] | None = None,
    jobs: Sequence[Job] = (),
    flow_runs: Sequence[FlowRun] = (),
) -> Sight:
    return Sight(moment, items or {}, jobs, flow_runs)


def seen(*sights: Sight) -> list[str]:
    watch = Watch(max_jobs=2, keys={"item": "key"})
    for each in sights:
        watch.see(each)
    return [*watch.violations]


def test_more_live_jobs_than_max_jobs_are_seen_at_once() -> None:
    jobs = [job(f"job-{number}", key=f"key-{number}") for number in range(3)]
    assert seen(sight(0, jobs=jobs)) == ["3 jobs were live at once; max_jobs is 2"]
    assert seen(sight(0, jobs=[*jobs[:2], job("old", key="other", ended=True)])) == []


@pytest.mark.parametrize(("seconds", "is_seen"), [(PASS_SECONDS - 0.1, False), (PASS_SECONDS, True)])
def test_two_live_jobs_of_an_attempt_are_seen_after_a_pass(seconds: float, is_seen: bool) -> None:
    twins = [job("a"), job("b")]
    assert bool(seen(sight(0, jobs=twins), sight(seconds, jobs=twins))) == is_seen
    assert seen(sight(0, jobs=twins), sight(1, jobs=twins[:1]), sight(seconds, jobs=twins)) == []
    assert seen(sight(0, jobs=[job("a"), job("b", attempt="2")]), sight(seconds, jobs=[job("a")])) == []


@pytest.mark.parametrize(
    "what",
    [
        {"items": {"item": "PENDING"}, "jobs": [job("a")]},
        {"flow_runs": [FlowRun("run", "item", "COMPLETED")], "jobs": [job("a")]},
    ],
    ids=["waiting at W&B", "ended at Prefect"],
)
def test_an_item_in_two_states_is_seen_after_a_while(what: dict[str, object]) -> None:
    assert seen(sight(0, **what)) == []  # pyright: ignore[reportArgumentType] - one of each kind
    found = seen(sight(0, **what), sight(DRIFT_SECONDS, **what))  # pyright: ignore[reportArgumentType]
    assert len(found) == 1
    assert "while a job of it was live" in found[0]


def test_an_end_that_is_overwritten_is_seen() -> None:
    assert seen(sight(0, jobs=[job("a", ended=True)]), sight(1, jobs=[job("a")])) == [
        f"a had ended as {SUCCEEDED} and was {RUNNING} later"
    ]
    runs = [FlowRun("run", "item", state) for state in ("FAILED", "RUNNING")]
    assert seen(sight(0, flow_runs=runs[:1]), sight(1, flow_runs=runs[1:]))
    assert seen(sight(0, items={"item": "FAILED"}), sight(1, items={"item": "CLAIMED"}))
    assert seen(sight(0, items={"item": "CLAIMED"}), sight(1, items={"item": "FAILED"})) == []
