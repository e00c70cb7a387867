"""Runs and sweeps as the queue client reads and cancels them."""

from __future__ import annotations

import json

import httpx
import pytest

from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    NotFound,
    PermissionDenied,
    Refused,
    Transient,
)
from prefect_vertex_launch.wandb.queue import RunPath, RunRecord
from tests.adapters.queue_client import answering, errors, mocked, open_queue


async def test_states_and_stop_requests_of_many_runs_take_one_request_for_fifty(queue, backend):
    runs = [RunPath("team", "p", f"r{number}") for number in range(120)]
    for run in runs[:100]:
        backend.runs.upsert("team", "p", {"name": run.run_id, "state": "running"})
    backend.runs.update_state(backend.runs.get("team", "p", "r1"), "failed")
    asked = {runs[0], runs[49], runs[50], runs[99]}
    for run in asked:
        backend.runs.stop(backend.runs.get("team", "p", run.run_id))
    queue.calls.clear()
    found = await queue.read_runs(runs)
    assert set(found) == set(runs[:100])
    assert {run for run, record in found.items() if record.is_stopped} == asked
    assert found[runs[1]] == RunRecord(state="failed", is_stopped=False)
    assert found[runs[2]] == RunRecord(state="running", is_stopped=False)
    assert queue.calls.total() == 3
    assert await queue.read_runs([]) == {}


async def test_a_run_that_may_not_be_seen_does_not_hide_the_others():
    def answer(request: httpx.Request) -> httpx.Response:
        variables = json.loads(request.content)["variables"]
        count = len(variables) // 3
        if "secret" in variables.values():
            return errors(403, "permission denied")
        runs = {f"run{number}": {"run": {"state": "running", "stopped": True}} for number in range(count)}
        return httpx.Response(200, json={"data": runs})

    runs = [RunPath("team", "secret" if number == 7 else "p", f"r{number}") for number in range(16)]
    async with mocked(answer) as queue:
        assert set(await queue.read_runs(runs)) == set(runs) - {runs[7]}


@pytest.mark.parametrize(("status", "error"), [(401, AuthenticationFailed), (503, Transient)])
async def test_a_failure_of_the_whole_request_is_not_taken_for_runs_that_are_not_there(status, error):
    async with mocked(answering({}, status)) as queue:
        with pytest.raises(error):
            await queue.read_runs([RunPath("team", "p", "a"), RunPath("team", "p", "b")])


async def test_the_state_of_a_run_is_read_and_none_if_there_is_no_run(queue, backend):
    backend.runs.upsert("team", "p", {"name": "r1", "state": "running"})
    assert await queue.read_run_state("team", "p", "r1") == "running"
    assert await queue.read_run_state("team", "p", "nope") is None
    assert await queue.read_run_state("team", "nowhere", "nope") is None


async def test_a_run_of_another_entity_is_not_said_to_be_missing_when_it_cannot_be_seen(queue, backend):
    backend.hide_entity("other")
    backend.ensure_project("other", "p")
    backend.runs.upsert("other", "p", {"name": "r1", "state": "running"})
    for run_id in ("r1", "nope"):
        with pytest.raises(NotFound, match=r"other/p.*cannot be known.*key of team.*may read other/p"):
            await queue.read_run_state("other", "p", run_id)
    seen, hidden = RunPath("team", "p", "mine"), RunPath("other", "p", "r1")
    backend.runs.upsert("team", "p", {"name": "mine", "state": "running"})
    assert set(await queue.read_runs([seen, hidden])) == {seen}


@pytest.mark.parametrize(
    ("answer", "entity", "expected"),
    [
        (answering({"data": {"project": {"run": None}}}), "other", None),
        (answering({"data": {"project": {"run": {"state": "finished"}}}}), "other", "finished"),
        (answering({"data": {"project": None}}), "team", None),
        (answering({"errors": [{"message": "not found"}]}, 404), "team", None),
        (answering({"errors": [{"message": "not found"}]}, 404), "other", NotFound),
        (answering({"errors": [{"message": "permission denied"}]}, 403), "team", PermissionDenied),
        (answering({"errors": [{"message": "permission denied"}]}, 403), "other", PermissionDenied),
    ],
)
async def test_no_run_is_told_from_a_run_that_may_not_be_seen(answer, entity, expected):
    async with mocked(answer) as queue:
        if expected is None or isinstance(expected, str):
            assert await queue.read_run_state(entity, "p", "r1") == expected
        else:
            with pytest.raises(expected):
                await queue.read_run_state(entity, "p", "r1")


# Sweeps


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "PAUSED", "FINISHED", "CANCELED"])
async def test_the_state_of_a_sweep_is_read(queue, backend, state):
    backend.put_sweep("p", "s1", state)
    assert await queue.read_sweep_state("team", "p", "s1") == state


async def test_a_sweep_that_is_not_there_or_not_seen_has_no_state(queue, backend):
    backend.hide_entity("other")
    backend.ensure_project("other", "p")
    backend.sweeps.put("other", "p", "s1", "RUNNING")
    for entity, project in (("team", "p"), ("team", "nowhere"), ("other", "p")):
        assert await queue.read_sweep_state(entity, project, "s1") is None
        with pytest.raises(NotFound, match=f"{entity}/{project}/s1"):
            await queue.cancel_sweep(entity, project, "s1")


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "PAUSED"])
async def test_a_sweep_that_goes_on_is_cancelled(queue, backend, state):
    backend.put_sweep("p", "s1", state, queue=queue.queue)
    backend.put_sweep("p", "s2", queue=queue.queue)
    await queue.cancel_sweep("team", "p", "s1")
    assert backend.sweep("p", "s1").state == "CANCELED"
    assert backend.sweep("p", "s2").state == "RUNNING"


@pytest.mark.parametrize("launched_on", [None, "another-queue"])
async def test_a_sweep_that_was_not_launched_on_the_queue_goes_on(queue, backend, launched_on):
    backend.put_sweep("p", "s1", queue=launched_on)
    with pytest.raises(Refused, match="team/p/s1: it was not launched on the queue"):
        await queue.cancel_sweep("team", "p", "s1")
    assert backend.sweep("p", "s1").state == "RUNNING"


@pytest.mark.parametrize("state", ["FINISHED", "CANCELED"])
async def test_a_sweep_that_has_ended_keeps_its_end(queue, backend, state):
    backend.put_sweep("p", "s1", state)
    await queue.cancel_sweep("team", "p", "s1")
    assert backend.sweep("p", "s1").state == state
    assert queue.calls == {"SweepWithRuns": 1}


async def test_a_refused_read_of_a_sweep_is_raised():
    async with mocked(lambda _request: errors(403, "permission denied")) as queue:
        with pytest.raises(PermissionDenied):
            await queue.read_sweep_state("team", "p", "s1")
    async with mocked(lambda _request: errors(404, "sweep not found")) as queue:
        assert await queue.read_sweep_state("team", "p", "s1") is None


async def test_a_wrong_key_is_not_taken_for_a_run_that_is_not_there(backend):
    async with open_queue(backend.base_url, key="w" * 40) as queue:
        with pytest.raises(AuthenticationFailed):
            await queue.read_run_state("other", "p", "r1")
