"""The faults of docs/faults.md that change what an answer of Vertex AI or W&B means, as clients see them."""

from __future__ import annotations

import asyncio

import pytest

from prefect_vertex_launch.core import errors
from prefect_vertex_launch.core.clock import SystemClock
from prefect_vertex_launch.core.states import ItemState
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.vertex.job_watcher import JobWatcher
from prefect_vertex_launch.wandb.queue import AgentStatus, RunPath
from tests.adapters.queue_client import NoWait
from tests.eventually import until
from tests.sandbox.fault_scene import Scene
from tests.sandbox.served_vertex import PARENT

pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- Vertex AI


async def test_new_jobs_are_not_listed_for_a_while(scene: Scene):
    await scene.on("vertex", "hidden", lists=2)
    created = await scene.create("late", test="lag")
    assert [await scene.listed("lag") for _ in range(3)] == [[], [], ["late"]]
    assert (await scene.jobs.get(created.name)).name == created.name
    await scene.on("vertex", "hidden", seconds=3600)
    await scene.create("hidden", test="lag")
    assert await scene.listed("lag") == ["late"]


async def test_a_row_is_missing_doubled_or_old(scene: Scene):
    for number in range(3):
        scene.sandbox.vertex.set_state(
            (await scene.create(f"j{number}", test="rows")).name, JobState.JOB_STATE_RUNNING
        )
    await scene.on("vertex", "omitted")
    assert await scene.listed("rows") == ["j1", "j0"]
    await scene.on("vertex", "omitted", about="j1", times=None)
    assert await scene.listed("rows") == ["j2", "j0"]
    await scene.sandbox.faults.clear()
    await scene.on("vertex", "doubled", times=2)
    assert await scene.listed("rows") == ["j2", "j1", "j0"]
    await scene.on("vertex", "stale", "ListCustomJobs", about="j0")
    listed = await scene.jobs.list('labels.test="rows"')
    assert [JobState(record.state).name[10:] for record in listed] == ["RUNNING", "RUNNING", "QUEUED"]
    assert await scene.listed("rows") == ["j2", "j1", "j0"]


async def test_a_job_that_a_list_shows_twice_is_no_duplicate_of_itself(scene: Scene):
    job = await scene.create("alone", **{"launch-item": "i", "launch-queue": "q"})
    scene.sandbox.vertex.set_state(job.name, JobState.JOB_STATE_RUNNING)
    await scene.on("vertex", "doubled", times=None)
    calls = scene.sandbox.vertex.calls
    before = calls["ListCustomJobs"]
    watcher = JobWatcher(scene.jobs, labels={"launch-queue": "q"}, interval_seconds=0.01, clock=SystemClock())
    running = asyncio.create_task(watcher.run())
    waiting = asyncio.create_task(watcher.wait(job.name))
    await until(lambda: calls["ListCustomJobs"] >= before + 3)
    running.cancel()
    assert calls["CancelCustomJob"] == 0
    waiting.cancel()


async def test_a_page_begins_one_row_late(scene: Scene):
    for number in range(4):
        await scene.create(f"j{number}", test="drift")
    url = f"{scene.sandbox.vertex_rest_url}/v1/{PARENT}/customJobs"
    query = {"filter": 'labels.test="drift"', "pageSize": "2"}
    first = (await scene.http.get(url, params=query)).json()
    await scene.on("vertex", "page_drift")
    query["pageToken"] = first["nextPageToken"]
    second = (await scene.http.get(url, params=query)).json()
    names = [row["displayName"] for page in (first, second) for row in page["customJobs"]]
    assert names == ["j3", "j2", "j0"]


async def test_a_get_is_old(scene: Scene):
    name = (await scene.create()).name
    scene.sandbox.vertex.set_state(name, JobState.JOB_STATE_FAILED, 3, "broken")
    await scene.on("vertex", "stale", "GetCustomJob")
    seen = [await scene.jobs.get(name) for _ in range(2)]
    assert [record.state for record in seen] == [JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_FAILED]
    assert [record.end_time is None for record in seen] == [True, False]
    assert [record.error_message for record in seen] == ["", "broken"]


@pytest.mark.parametrize(
    "state", ["JOB_STATE_PAUSED", "JOB_STATE_EXPIRED", "JOB_STATE_PARTIALLY_SUCCEEDED", 42]
)
async def test_a_job_is_put_into_any_state(scene: Scene, state: str | int):
    number = JobState[state].value if isinstance(state, str) else state
    await scene.on("vertex", "state", "CreateCustomJob", state=state)
    created = await scene.create(test="state")
    assert created.state == JobState.JOB_STATE_QUEUED
    assert (await scene.jobs.get(created.name)).state == number
    answer = (await scene.http.get(f"{scene.sandbox.vertex_rest_url}/v1/{created.name}")).json()
    assert answer["state"] == state


async def test_a_job_fails_in_vertex_ais_words(scene: Scene):
    words = "Resources are insufficient in region: us-central1. STOCKOUT"
    fault = {"state": "JOB_STATE_FAILED", "code": "RESOURCE_EXHAUSTED", "message": words}
    await scene.on("vertex", "state", "CreateCustomJob", **fault)
    ended = await scene.jobs.get((await scene.create()).name)
    assert (ended.error_code, ended.error_message) == (8, words)


async def test_a_job_goes_back_and_then_on(scene: Scene):
    created = await scene.create("preempted", test="back")
    scene.sandbox.vertex.set_state(created.name, JobState.JOB_STATE_RUNNING)
    switch = await scene.on("vertex", "state", "ListCustomJobs", state="JOB_STATE_PENDING", about="preempted")
    [listed] = await scene.jobs.list('labels.test="back"')
    assert listed.state == JobState.JOB_STATE_PENDING
    await scene.sandbox.faults.remove(switch)
    await until(lambda: scene.sandbox.vertex.get(created.name).state == JobState.JOB_STATE_SUCCEEDED)


async def test_a_job_is_cancelling_until_it_is_let_go(scene: Scene):
    switch = await scene.on("vertex", "state", "CancelCustomJob", state="JOB_STATE_CANCELLING")
    name = (await scene.create()).name
    await scene.jobs.cancel(name)
    assert (await scene.jobs.get(name)).state == JobState.JOB_STATE_CANCELLING
    await scene.sandbox.faults.remove(switch)
    await until(lambda: scene.sandbox.vertex.get(name).state == JobState.JOB_STATE_CANCELLED)


async def test_a_cancel_comes_too_late(scene: Scene):
    await scene.on("vertex", "state", "CancelCustomJob", state="JOB_STATE_SUCCEEDED")
    name = (await scene.create()).name
    await scene.jobs.cancel(name)
    assert (await scene.jobs.get(name)).state == JobState.JOB_STATE_SUCCEEDED


@pytest.mark.parametrize(
    ("call", "rpc"), [("get", "GetCustomJob"), ("list", "ListCustomJobs"), ("cancel", "CancelCustomJob")]
)
async def test_a_job_is_deleted_by_somebody(scene: Scene, call: str, rpc: str):
    created = await scene.create("gone", test=call)
    await scene.on("vertex", "deleted", rpc, about=created.name)
    if call == "list":
        assert await scene.listed(call) == []
    else:
        with pytest.raises(errors.NotFound):
            await getattr(scene.jobs, call)(created.name)
    with pytest.raises(errors.NotFound):
        await scene.jobs.get(created.name)


class Sleepless(NoWait):
    """Knows for how long it was to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await super().sleep(seconds)


async def test_the_jobs_are_left_alone_for_as_long_as_vertex_ai_asks(scene: Scene):
    job = await scene.create("watched", **{"launch-queue": "q"})
    await scene.on("vertex", "answer", "ListCustomJobs", status=503, retry_after_seconds=77)
    clock, calls = Sleepless(), scene.sandbox.vertex.calls
    before = calls["ListCustomJobs"]
    watcher = JobWatcher(scene.jobs, labels={"launch-queue": "q"}, interval_seconds=1, clock=clock)
    running = asyncio.create_task(watcher.run())
    waiting = asyncio.create_task(watcher.wait(job.name))
    await until(lambda: calls["ListCustomJobs"] >= before + 2)
    assert clock.slept[0] >= 77
    running.cancel()
    waiting.cancel()


# --- W&B


async def test_nothing_is_popped_although_something_is_queued(scene: Scene):
    item_id = scene.push()
    await scene.on("wandb", "null", "popFromRunQueue", times=2)
    assert [await scene.queue.pop(None) for _ in range(2)] == [None, None]
    assert (await scene.pop()).item_id == item_id


async def test_a_spec_is_malformed_or_huge(scene: Scene):
    for text, payload in (("null", None), ("[1]", [1]), ('"text"', None)):
        scene.push()
        await scene.on("wandb", "run_spec", run_spec=text)
        assert (await scene.pop()).payload == payload
    broken = scene.push()
    await scene.on("wandb", "run_spec", run_spec='{"entity": ')
    popped = await scene.pop()
    assert popped.item_id == broken
    assert "not valid JSON" in str(popped.problem)
    scene.push()
    await scene.on("wandb", "run_spec", size_bytes=1_000_000)
    popped = await scene.pop()
    assert isinstance(popped.payload, dict)
    assert popped.size_bytes > 1_000_000


async def test_a_spec_has_the_size_that_it_is_to_have(scene: Scene):
    popped = {}
    for size in (2, 13, 14, 15, 1000):
        scene.push()
        await scene.on("wandb", "run_spec", size_bytes=size)
        popped[size] = await scene.pop()
        assert isinstance(popped[size].payload, dict)
    assert [item.size_bytes - popped[2].size_bytes for item in popped.values()] == [0, 11, 12, 13, 998]


async def test_the_same_item_is_handed_out_twice(scene: Scene):
    first = scene.push(name="first")
    scene.push(name="second")
    await scene.on("wandb", "same_item", skip=1)
    popped = [await scene.pop() for _ in range(3)]
    assert [item.payload["name"] for item in popped] == ["first", "first", "second"]
    await scene.queue.acknowledge(first, "run-1")
    with pytest.raises(errors.Conflict):
        await scene.queue.acknowledge(first, "run-2")


async def test_a_lease_ends_at_once(scene: Scene):
    item_id = scene.push()
    await scene.on("wandb", "lease_ends")
    assert (await scene.pop()).item_id == item_id
    with pytest.raises(errors.Conflict, match="it is PENDING"):
        await scene.queue.acknowledge(item_id, "run-1")
    assert (await scene.pop()).item_id == item_id


async def test_a_write_is_answered_false_and_not_done(scene: Scene):
    item_id = scene.push()
    await scene.pop()
    await scene.on("wandb", "false", "ackRunQueueItem")
    with pytest.raises(errors.Conflict, match="LEASED"):
        await scene.queue.acknowledge(item_id, "run-1")
    await scene.on("wandb", "false", "failRunQueueItem")
    with pytest.raises(errors.Transient, match="did not carry out failRunQueueItem"):
        await scene.queue.fail(item_id, "broken", "run")
    assert (await scene.queue.read_item(item_id)).state is ItemState.LEASED
    await scene.queue.fail(item_id, "broken", "run")
    await scene.on("wandb", "false", "failRunQueueItem")
    await scene.queue.fail(item_id, "broken", "run")


async def test_a_queue_item_or_run_is_deleted(scene: Scene):
    backend = scene.sandbox.wandb
    backend.ensure_project("team", "p")
    backend.runs.upsert("team", "p", {"name": "run-1"})
    await scene.on("wandb", "deleted", "RunStatuses")
    assert await scene.queue.read_runs([RunPath("team", "p", "run-1")]) == {}
    item_id = scene.push()
    await scene.pop()
    await scene.on("wandb", "deleted", "ackRunQueueItem")
    with pytest.raises(errors.Conflict, match="removed from the queue"):
        await scene.queue.acknowledge(item_id, "run-1")
    await scene.on("wandb", "deleted", "popFromRunQueue")
    with pytest.raises(errors.Refused, match="could not find run queue"):
        await scene.queue.pop(None)
    with pytest.raises(errors.NotFound, match="no such queue"):
        await scene.queue.find_queue()


async def test_stop_polling_flips(scene: Scene):
    agent = await scene.queue.register({})
    await scene.on("wandb", "stop_polling", skip=1)
    seen = [(await scene.queue.read_agent(agent.agent_id)).stop_polling for _ in range(3)]
    assert seen == [False, True, False]


async def test_a_key_is_revoked_and_accepted_again(scene: Scene):
    revoked = await scene.on("wandb", "answer", status=401, times=None)
    for call in (scene.queue.find_queue, lambda: scene.queue.pop(None)):
        with pytest.raises(errors.AuthenticationFailed):
            await call()
    await scene.sandbox.faults.remove(revoked)
    await scene.queue.find_queue()


async def test_requests_beside_graphql_have_names_too(scene: Scene):
    agent = await scene.queue.register({})
    await scene.queue.open_agent_run(agent.name)
    for operation, call in (
        ("upload", lambda: scene.queue.upload_agent_file(agent.name, "a/b", "text")),
        ("file_stream", lambda: scene.queue.close_agent_run(agent.name)),
    ):
        await scene.on("wandb", "answer", operation, status=403)
        with pytest.raises(errors.PermissionDenied):
            await call()
        await call()
    await scene.queue.heartbeat(agent.agent_id, AgentStatus.POLLING)
