"""Each fault of docs/faults.md as clients see it: our own adapters, and plain HTTP and gRPC."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import ValidationError
from queue_client import CONFIG, NoWait, open_queue
from served_vertex import PARENT, job, until

from vertex_launch import errors
from vertex_launch.lifecycle import ItemState, JobRecord
from vertex_launch.sandbox.faults import WIRE, Fault, What
from vertex_launch.sandbox.server import Sandbox
from vertex_launch.vertex_jobs import VertexJobs
from vertex_launch.vertex_types import JobState
from vertex_launch.wandb_queue import AgentStatus, PoppedItem, RunPath, WandbQueue

module_loop = pytest.mark.asyncio(loop_scope="module")
pytestmark = module_loop
BRIEF_SECONDS = 0.2
NUMBERS = count()
PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


class Scene:
    """The sandbox, whose jobs stay QUEUED, and a queue, jobs and HTTP client of one test."""

    def __init__(self, sandbox: Sandbox, queue: WandbQueue, jobs: VertexJobs, http: httpx.AsyncClient):
        self.sandbox, self.queue, self.jobs, self.http = sandbox, queue, jobs, http

    async def on(self, server: str, what: str, operation: str = "any", **more: Any) -> Any:
        return await self.sandbox.faults.add(
            Fault.model_validate({"server": server, "what": what, "operation": operation, **more})
        )

    def push(self, **spec: Any) -> str:
        text = json.dumps({"entity": "team", "project": "p", **spec})
        return self.sandbox.wandb.push_raw(self.queue.queue, text)

    async def pop(self) -> PoppedItem:
        popped = await self.queue.pop(None)
        assert popped is not None
        return popped

    async def create(self, name: str = "job", **labels: str) -> JobRecord:
        return await self.jobs.create(job(name=name, labels=labels))

    async def listed(self, label: str) -> list[str]:
        return [record.display_name for record in await self.jobs.list(f'labels.test="{label}"')]

    def state_of(self, item_id: str) -> str:
        item = self.sandbox.wandb.item(item_id)
        assert item is not None
        return item.state


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(entity="team", queued_seconds=3600, pending_seconds=0, faults_port=0) as running:
        yield running


@asynccontextmanager
async def clients(sandbox: Sandbox, name: str) -> AsyncIterator[Scene]:
    jobs = VertexJobs(
        project="p", location="us-central1", endpoint=sandbox.vertex_grpc_url, clock=NoWait(),
        random=Random(1), timeout_seconds=BRIEF_SECONDS, create_timeout_seconds=BRIEF_SECONDS,
    )  # fmt: skip
    queue = open_queue(sandbox.wandb_url, key=sandbox.api_key, name=name, timeout_seconds=BRIEF_SECONDS)
    async with queue, httpx.AsyncClient() as http:
        yield Scene(sandbox, queue, jobs, http)
    await jobs.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def scene(module_sandbox: Sandbox) -> AsyncIterator[Scene]:
    name = f"queue-{next(NUMBERS)}"
    queues = module_sandbox.wandb.queues
    config = queues.create_config("team", "gcp-vertex", json.dumps(CONFIG), None)
    queues.create("team", "model-registry", name, created_by="ann", resource_config_id=config.id)
    async with clients(module_sandbox, name) as scene:
        yield scene
    await module_sandbox.faults.clear()


# --- what a fault may be, and when it happens


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"server": "wandb", "what": "hidden"}, "not a fault of W&B's"),
        ({"server": "vertex", "what": "null"}, "not a fault of Vertex AI's"),
        ({"server": "vertex", "what": "answer"}, "needs code"),
        ({"server": "wandb", "what": "answer", "code": "INTERNAL"}, "needs status"),
        ({"server": "vertex", "what": "answer", "code": "UNAVAILBLE"}, "did you mean 'UNAVAILABLE'"),
        ({"server": "vertex", "what": "answer", "status": 418}, "status '418' cannot be used"),
        ({"server": "vertex", "what": "stale", "operation": "GetCustomJobs"}, "did you mean 'GetCustomJob'"),
        ({"server": "vertex", "what": "hidden", "operation": "GetCustomJob", "lists": 1}, "CreateCustomJob"),
        ({"server": "vertex", "what": "state", "state": "JOB_STATE_PAUSE"}, "'JOB_STATE_PAUSED'"),
        ({"server": "vertex", "what": "state"}, "needs state"),
        ({"server": "vertex", "what": "down", "operation": "GetCustomJob"}, "every operation"),
        ({"server": "wandb", "what": "slow"}, "needs seconds"),
        ({"server": "wandb", "what": "hang", "operatoin": "x"}, "did you mean 'operation'"),
        ({"server": "gcs", "what": "hang"}, "'wandb' or 'vertex'"),
        ({"server": "wandb", "what": "hang", "times": 0}, "greater than or equal to 1"),
    ],
)  # fmt: skip
async def test_a_fault_that_could_never_happen_is_refused(scene: Scene, fault: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=re.escape(said)):
        Fault.model_validate(fault)
    answer = await scene.http.post(scene.sandbox.faults_url, json=fault)
    assert answer.status_code == 400
    assert said in " ".join(answer.json()["errors"])
    assert (await scene.http.get(scene.sandbox.faults_url)).json() == []


async def test_a_fault_happens_as_often_as_it_says(scene: Scene):
    created = await scene.create()

    async def fails(**when: Any) -> str:
        switch = await scene.on("vertex", "answer", "GetCustomJob", code="NOT_FOUND", **when)
        seen = ""
        for _ in range(8):
            try:
                await scene.jobs.get(created.name)
                seen += "."
            except errors.NotFound:
                seen += "x"
        assert switch.hit == seen.count("x")
        await scene.sandbox.faults.remove(switch)
        return seen

    assert await fails() == "x......."
    assert await fails(times=3, skip=2) == "..xxx..."
    assert await fails(times=None) == "xxxxxxxx"
    assert await fails(times=None, probability=0) == "........"
    drawn = await fails(times=None, probability=0.5, seed=7)
    assert set(drawn) == {".", "x"}
    assert await fails(times=None, probability=0.5, seed=7) == drawn
    assert await fails(times=None, probability=0.5, seed=8) != drawn


async def test_a_fault_is_about_one_thing_if_it_says_so(scene: Scene):
    mine, other = await scene.create(), await scene.create()
    await scene.on("vertex", "answer", code="NOT_FOUND", times=None, about=mine.name)
    assert (await scene.jobs.get(other.name)).name == other.name
    with pytest.raises(errors.NotFound):
        await scene.jobs.get(mine.name)
    await scene.on("wandb", "answer", status=403, times=None, about="another-queue")
    assert (await scene.queue.find_queue()).name == scene.queue.queue


async def test_faults_are_switched_over_http(scene: Scene):
    url = scene.sandbox.faults_url
    fault = {"server": "wandb", "operation": "popFromRunQueue", "what": "null"}
    added = await scene.http.post(url, json=fault)
    assert added.status_code == 201
    number = added.json()["id"]
    scene.push()
    assert await scene.queue.pop(None) is None
    shown = (await scene.http.get(f"{url}/{number}")).json()
    assert shown == {"id": number, "matched": 1, "hit": 1, **fault}
    assert (await scene.http.get(url)).json() == [shown]
    assert (await scene.http.delete(f"{url}/{number}")).json() == shown
    assert (await scene.http.delete(f"{url}/{number}")).status_code == 404
    assert (await scene.http.get(f"{url}/{number}")).status_code == 404
    await scene.http.post(url, json=fault)
    assert (await scene.http.delete(url)).json() == []
    assert (await scene.queue.pop(None)) is not None
    for body in (b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000, b'{"state": 1e999}'):
        assert (await scene.http.post(url, content=body)).status_code == 400


# --- on the wire


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, errors.AuthenticationFailed), (403, errors.PermissionDenied), (404, errors.NotFound),
        (409, errors.Conflict), (429, errors.Transient), (500, errors.Transient), (503, errors.Transient),
        (200, errors.Transient),
    ],
)  # fmt: skip
async def test_wandb_answers_with_a_status(scene: Scene, status: int, error: type[Exception]):
    item_id = scene.push()
    await scene.on("wandb", "answer", "popFromRunQueue", status=status)
    with pytest.raises(error):
        await scene.queue.pop(None)
    assert scene.state_of(item_id) == "PENDING"
    assert (await scene.pop()).item_id == item_id


async def test_wandb_says_when_to_come_again_and_what_is_wrong(scene: Scene):
    await scene.on("wandb", "answer", "popFromRunQueue", status=429, retry_after_seconds=33)
    with pytest.raises(errors.Transient, match="rate limit") as limited:
        await scene.queue.pop(None)
    assert limited.value.retry_after_seconds == 33
    await scene.on("wandb", "answer", "popFromRunQueue", status=200, message="the moon is in the way")
    with pytest.raises(errors.Refused, match="the moon is in the way"):
        await scene.queue.pop(None)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("UNAVAILABLE", errors.Transient), ("DEADLINE_EXCEEDED", errors.Transient),
        ("INTERNAL", errors.Transient), ("ABORTED", errors.Transient),
        ("RESOURCE_EXHAUSTED", errors.OverQuota), ("UNAUTHENTICATED", errors.AuthenticationFailed),
        ("PERMISSION_DENIED", errors.PermissionDenied), ("NOT_FOUND", errors.NotFound),
        ("FAILED_PRECONDITION", errors.Refused), ("INVALID_ARGUMENT", errors.Refused),
        ("ALREADY_EXISTS", errors.Refused),
    ],
)  # fmt: skip
async def test_vertex_ai_answers_with_a_code(scene: Scene, code: str, error: type[Exception]):
    created = await scene.create()
    before = scene.sandbox.vertex.calls["GetCustomJob"]
    await scene.on("vertex", "answer", "GetCustomJob", code=code, message="so it is")
    with pytest.raises(error, match="so it is"):
        await scene.jobs.get(created.name, attempts=1)
    assert scene.sandbox.vertex.calls["GetCustomJob"] == before + 1, "it counts all the same"
    await scene.on("vertex", "answer", "GetCustomJob", code=code, message="so it is")
    answer = await scene.http.get(f"{scene.sandbox.vertex_rest_url}/v1/{created.name}")
    assert answer.json()["error"] == {"code": answer.status_code, "status": code, "message": "so it is"}
    assert answer.status_code >= 400


async def test_vertex_ai_answers_with_an_http_status(scene: Scene):
    created = await scene.create()
    for status, error in (
        (401, errors.AuthenticationFailed),
        (403, errors.PermissionDenied),
        (503, errors.Transient),
    ):
        await scene.on("vertex", "answer", "GetCustomJob", status=status)
        with pytest.raises(error):
            await scene.jobs.get(created.name, attempts=1)


async def test_creates_are_refused_for_a_quota(scene: Scene):
    await scene.on("vertex", "answer", "CreateCustomJob", status=429, times=2, about="us-central1")
    with pytest.raises(errors.OverQuota, match="custom_model_training_nvidia_t4_gpus") as refused:
        await scene.create()
    assert refused.value.is_capacity
    body = {"displayName": "x"}
    answer = await scene.http.post(f"{scene.sandbox.vertex_rest_url}/v1/{PARENT}/customJobs", json=body)
    assert answer.status_code == 429
    await scene.create()
    await scene.on("vertex", "answer", "CreateCustomJob", status=429, about="us-east1")
    await scene.create()


async def test_vertex_ai_says_when_to_come_again(scene: Scene):
    await scene.on("vertex", "answer", "CreateCustomJob", status=429, retry_after_seconds=7)
    with pytest.raises(errors.OverQuota) as refused:
        await scene.create()
    assert refused.value.retry_after_seconds == 7
    await scene.on("vertex", "answer", "ListCustomJobs", status=503, retry_after_seconds=9)
    answer = await scene.http.get(f"{scene.sandbox.vertex_rest_url}/v1/{PARENT}/customJobs")
    assert answer.headers["Retry-After"] == "9"


CUTS = ["cut_before", "cut_after", "cut_midway", "garbage", "hang"]


@pytest.mark.parametrize("what", CUTS)
async def test_a_pop_whose_answer_is_lost_has_leased_its_item_or_not(scene: Scene, what: str):
    item_id = scene.push()
    await scene.on("wandb", what, "popFromRunQueue")
    with pytest.raises(errors.Transient):
        await scene.queue.pop(None)
    is_carried_out = what not in {"cut_before", "hang"}
    assert scene.state_of(item_id) == ("LEASED" if is_carried_out else "PENDING")
    assert (await scene.queue.pop(None) is None) == is_carried_out


@pytest.mark.parametrize("what", CUTS)
async def test_a_create_whose_answer_is_lost_has_made_a_job_or_not(scene: Scene, what: str):
    await scene.on("vertex", what, "CreateCustomJob")
    with pytest.raises(errors.OutcomeUnknown):
        await scene.create("lost", test=what)
    is_carried_out = what not in {"cut_before", "hang"}
    assert await scene.listed(what) == (["lost"] if is_carried_out else [])


@pytest.mark.parametrize("what", CUTS)
async def test_rest_loses_answers_too(scene: Scene, what: str):
    created = await scene.create()
    await scene.on("vertex", what, "CancelCustomJob")
    url = f"{scene.sandbox.vertex_rest_url}/v1/{created.name}:cancel"
    if what == "garbage":
        with pytest.raises(ValueError, match=r"JSON|utf"):
            (await scene.http.post(url)).json()
    else:
        with pytest.raises(httpx.TransportError):
            await scene.http.post(url, timeout=BRIEF_SECONDS)
    state = (await scene.jobs.get(created.name)).state
    is_carried_out = what not in {"cut_before", "hang"}
    assert (state != JobState.JOB_STATE_QUEUED) == is_carried_out


async def test_a_claim_whose_answer_is_lost_is_ours_all_the_same(scene: Scene):
    for what in ("cut_after", "cut_midway", "garbage"):
        item_id = scene.push()
        await scene.pop()
        await scene.on("wandb", what, "ackRunQueueItem")
        await _claimed(scene, item_id)
    for what in ("cut_after", "cut_midway"):
        await scene.on("wandb", what, "failRunQueueItem")
        await scene.queue.fail(item_id, "broken", "run")
    assert [notice["message"] for notice in scene.sandbox.wandb.item(item_id).notices] == ["broken"] * 4


async def _claimed(scene: Scene, item_id: str) -> None:
    await scene.queue.acknowledge(item_id, "run-1")
    assert scene.state_of(item_id) == "CLAIMED"


async def test_an_answer_is_slow(scene: Scene):
    scene.push()
    created = await scene.create()
    await scene.on("wandb", "slow", "popFromRunQueue", seconds=0.01)
    assert await scene.queue.pop(None) is not None
    await scene.on("vertex", "slow", "GetCustomJob", seconds=0.01)
    assert (await scene.jobs.get(created.name)).name == created.name
    slow = await scene.on("vertex", "slow", "GetCustomJob", seconds=3600)
    with pytest.raises(errors.Transient):
        await scene.jobs.get(created.name, attempts=1)
    assert slow.hit == 1


@pytest.mark.parametrize("server", ["wandb", "vertex"])
async def test_a_server_goes_away_and_comes_back_on_its_port(
    module_sandbox: Sandbox, server: str, scene: Scene
):
    created, item_id = await scene.create(), scene.push()
    urls = {"wandb": module_sandbox.wandb_url, "vertex": module_sandbox.vertex_rest_url}
    outage = await scene.on(server, "down")
    for name, url in urls.items():
        if name == server:
            with pytest.raises(httpx.ConnectError):
                await scene.http.get(url)
        else:
            assert (await scene.http.get(url)).status_code == 404
    if server == "vertex":
        with pytest.raises(errors.Transient):
            await scene.jobs.get(created.name, attempts=1)
    else:
        with pytest.raises(errors.Transient):
            await scene.queue.pop(None)
    # The switches can still be reached.
    assert (await scene.http.delete(f"{module_sandbox.faults_url}/{outage.id}")).status_code == 200
    # A channel that was refused waits a second before it tries again; this one is the last of its users.
    await scene.jobs.aclose()
    async with clients(module_sandbox, scene.queue.queue) as later:
        assert (await later.jobs.get(created.name)).name == created.name
        assert (await later.pop()).item_id == item_id


async def test_a_server_comes_back_by_itself(scene: Scene):
    await scene.on("wandb", "down", seconds=0.01)
    longer = await scene.on("wandb", "down")
    await until(lambda: len(list(scene.sandbox.faults)) == 1)
    with pytest.raises(httpx.ConnectError):
        await scene.http.get(scene.sandbox.wandb_url)
    await scene.sandbox.faults.remove(longer)
    assert (await scene.http.get(scene.sandbox.wandb_url)).status_code == 404


# --- what Vertex AI's answers mean


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
    assert await scene.listed("rows") == ["j2", "j2", "j1", "j1", "j0"]
    await scene.on("vertex", "stale", "ListCustomJobs", about="j0")
    listed = await scene.jobs.list('labels.test="rows"')
    assert [JobState(record.state).name[10:] for record in listed] == ["RUNNING", "RUNNING", "QUEUED"]
    assert await scene.listed("rows") == ["j2", "j1", "j0"]


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


# --- what W&B's answers mean


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
    with pytest.raises(errors.Refused):
        await scene.queue.fail(item_id, "broken", "run")
    assert (await scene.queue.read_item(item_id)).state is ItemState.LEASED


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


# --- the page


@module_loop
async def test_the_page_has_every_fault_and_its_examples_are_faults():
    text = PAGE.read_text()
    for what in What:
        assert f"`{what.value}`" in text, what
    examples = re.findall(r"`(\{\"server\".*?\})`|-d '(\{.*?\})'", text)
    faults = [Fault.model_validate_json(left or right) for left, right in examples]
    assert {fault.what for fault in faults} >= set(What) - WIRE
