"""However many things are wrong with an item, the search for them ends after a hundred."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from prefect_vertex_launch.cli.migrate.agent_config import read_agent_config
from prefect_vertex_launch.core.errors import Permanent
from prefect_vertex_launch.core.json_value import FURTHER_PROBLEMS, MAX_PROBLEMS, json_problems
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults, parse_queue_config
from prefect_vertex_launch.jobspec.sweeps import scheduler_resource_args
from tests.unit.rendered_launch import launch, pool, read_run_spec

UNKNOWN: dict[str, Any] = {f"machine_typ{number}": number for number in range(5_000)}
SCHEDULER = {"uri": "placeholder-uri-scheduler", "run_id": "s1", "docker": {"docker_image": "python"}}


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names for which a right spelling is looked for."""
    names: list[str] = []
    compare = difflib.get_close_matches

    def counted(word: str, possibilities: Iterable[str], *given: Any, **named: Any) -> list[str]:
        names.append(word)
        return compare(word, possibilities, *given, **named)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    return names


def fallback(**changes: Any) -> dict[str, Any]:
    return {"options": {"fallbacks": [{"location": "us-east1", **changes}]}}


PLACES: dict[str, Callable[[], Any]] = {
    "overrides": lambda: launch(item={"overrides": UNKNOWN}),
    "docker": lambda: launch(item={"docker": {"docker_image": "python", **UNKNOWN}}),
    "other resources": lambda: launch(item={"resource_args": UNKNOWN}),
    "sections": lambda: parse_queue_config({"spec": {}, **UNKNOWN}),
    "spec": lambda: launch(spec=UNKNOWN),
    "run": lambda: launch(run=UNKNOWN),
    "options": lambda: launch(options=UNKNOWN),
    "pool": lambda: launch({**pool(), **UNKNOWN}),
    "machine": lambda: launch({**pool(), "machine_spec": UNKNOWN}),
    "variables": lambda: launch(pool(env=[{"name": "A", key: "1"} for key in UNKNOWN][:900])),
    "fallback": lambda: launch(**fallback(**UNKNOWN)),
    "spec of a fallback": lambda: launch(**fallback(spec=UNKNOWN)),
    "machine of a fallback": lambda: launch(**fallback(machine_spec=UNKNOWN)),
    "arguments": lambda: launch(pool(args=[1] * 5_000)),
    "override arguments": lambda: launch(item={"overrides": {"args": [None] * 5_000}}),
    "ranges": lambda: launch(run={"reserved_ip_ranges": ["A"] * 5_000, "network": "n"}),
    "indices of pools": lambda: launch(options={"command_pools": list(range(9, 5_000))}),
    "macros": lambda: launch(spec={"labels": {f"a{key}": "${x}" for key in range(60)}, "display_name": "${x}" * 500}),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_the_search_ends_after_a_hundred(place: str, compared: list[str]) -> None:
    with pytest.raises(Permanent) as caught:
        PLACES[place]()
    found = caught.value.problems
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == FURTHER_PROBLEMS
    assert len(compared) <= MAX_PROBLEMS + 1


def test_a_hundred_problems_are_all_told() -> None:
    with pytest.raises(Permanent) as caught:
        launch(pool(args=[1] * MAX_PROBLEMS))
    assert len(caught.value.problems) == MAX_PROBLEMS
    assert FURTHER_PROBLEMS not in caught.value.problems


def test_the_same_hundred_are_told_by_every_process() -> None:
    with pytest.raises(Permanent) as caught:
        read_run_spec(overrides=UNKNOWN)
    told = [problem.where for problem in caught.value.problems[:3]]
    assert told == ["overrides.machine_typ0", "overrides.machine_typ1", "overrides.machine_typ2"]


def test_unknown_keys_of_a_run_spec_are_warnings_however_many_there_are(compared: list[str]) -> None:
    """W&B's server may add keys of its own, and its agent takes them all."""
    some = read_run_spec(**{f"x{number}": 1 for number in range(MAX_PROBLEMS)})
    assert len(some.warnings) == MAX_PROBLEMS
    many = read_run_spec(**{f"x{number}": 1 for number in range(5_000)})
    assert len(many.warnings) == MAX_PROBLEMS
    assert many.warnings[0] == "run spec: 4900 more keys that are not known here; they have no effect"
    assert len(compared) <= 2 * MAX_PROBLEMS


def test_a_misspelled_key_is_refused_among_others_that_are_unknown() -> None:
    with pytest.raises(Permanent, match="Did you mean overrides"):
        read_run_spec(**{f"x{number}": 1 for number in range(50)}, override={})


def test_what_a_scheduler_does_not_need_is_not_looked_at(compared: list[str]) -> None:
    wrong = {"vertex": {"spec": {**UNKNOWN, "staging_bucket": "gs://b"}, "run": UNKNOWN, "x": 1}}
    spec = read_run_spec(**SCHEDULER, resource_args=wrong)
    arguments = scheduler_resource_args(spec, QueueDefaults(spec=UNKNOWN, run={}))
    assert set(arguments["spec"]) == {"staging_bucket", "worker_pool_specs"}
    assert compared == []


@pytest.mark.parametrize(
    "value",
    [["\ud800"] * 5_000, {f"\0{number}": 1 for number in range(5_000)}, {"a": [[float("nan")]] * 5_000}],
)
def test_what_is_not_json_is_told_a_hundred_times(value: Any) -> None:
    found = json_problems(value, where="x")
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == FURTHER_PROBLEMS


def test_a_large_object_is_measured_before_its_keys_are_kept() -> None:
    class Keys(dict[str, Any]):
        looked_at = 0

        def items(self) -> Any:
            for item in super().items():
                Keys.looked_at += 1
                yield item

    assert "480 KiB" in str(json_problems(Keys.fromkeys(map(str, range(400_000))), where="x")[0])
    assert Keys.looked_at < 100_000


def test_the_search_in_an_agents_configuration_ends_too() -> None:
    migration = read_agent_config({"entity": "team", "queues": [1] * 5_000}, {})
    assert len(migration.problems) == MAX_PROBLEMS + 1
