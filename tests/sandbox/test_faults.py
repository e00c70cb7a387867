"""The faults of docs/faults.md as such, and those on the wire, as our adapters and plain clients see them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_vertex_launch.core import errors
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.sandbox.faults.kinds import WIRE
from prefect_vertex_launch.sandbox.faults.registry import Fault, What
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.eventually import HANG_SECONDS, until
from tests.sandbox.fault_scene import BRIEF_SECONDS, Scene, clients
from tests.sandbox.served_vertex import PARENT

pytestmark = pytest.mark.asyncio(loop_scope="module")
PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


# --- when a fault happens, and to whom


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


ODD = 'größe "a\\b" = 1'


async def test_a_fault_is_about_a_text_however_the_request_writes_it(scene: Scene):
    await scene.on("vertex", "cut_before", "CreateCustomJob", about=ODD, times=2)
    with pytest.raises(errors.OutcomeUnknown):
        await scene.create(f"x {ODD}")
    rest = f"{scene.sandbox.vertex_rest_url}/v1/{PARENT}/customJobs"
    with pytest.raises(httpx.TransportError):
        await scene.http.post(rest, content=json.dumps({"displayName": ODD}))
    listing = await scene.on("vertex", "answer", "ListCustomJobs", status=503, about=f"display_name={ODD}")
    assert (await scene.http.get(rest, params={"filter": f"display_name={ODD}"})).status_code == 503
    assert listing.hit == 1

    url, query = f"{scene.sandbox.wandb_url}/graphql", "query It($a: String!) { entity(name: $a) { id } }"
    for variable in (ODD, json.dumps({"config": ODD}), json.dumps({"config": ODD}, ensure_ascii=False)):
        for escaped in (True, False):
            body = json.dumps({"query": query, "variables": {"a": variable}}, ensure_ascii=escaped)
            for what, seen in (("answer", 418), ("null", 200)):
                more = {"status": seen} if what == "answer" else {}
                switch = await scene.on("wandb", what, "It", about=ODD, **more)
                answer = await scene.http.post(
                    url, content=body.encode(), auth=("api", scene.sandbox.api_key)
                )
                assert (answer.status_code, switch.hit) == (seen, 1), (what, body)
    blob = await scene.on("wandb", "answer", "upload", status=418, about="tail")
    upload = await scene.http.put(f"{scene.sandbox.wandb_url}/storage/x", content=b"\xff\0tail")
    assert (upload.status_code, blob.hit) == (418, 1)


@pytest.mark.parametrize("what", ["stale", "answer"])
async def test_a_job_may_be_meant_by_the_name_that_a_request_gives_it(scene: Scene, what: str):
    created = await scene.create()
    name = f"{PARENT}/customJobs/{created.job_id}"
    assert name != created.name
    more = {"status": 503} if what == "answer" else {}
    switch = await scene.on("vertex", what, "GetCustomJob", about=name, **more)
    with contextlib.suppress(errors.Transient):
        await scene.jobs.get(name, attempts=1)
    assert switch.hit == 1


async def test_jobs_may_be_meant_by_the_parent_that_a_request_gives_them(scene: Scene):
    await scene.create("old", test="parent")
    await scene.on("vertex", "omitted", about=PARENT)
    assert await scene.listed("parent") == []
    await scene.on("vertex", "hidden", about=PARENT, lists=1)
    await scene.create("new", test="parent")
    assert await scene.listed("parent") == ["old"]


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


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_cannot_have_a_body_has_none(
    scene: Scene, caplog: pytest.LogCaptureFixture, status: int
):
    url = f"{scene.sandbox.wandb_url}/graphql"
    await scene.on("wandb", "answer", status=status)
    answer = await scene.http.post(url, content=b"{}")
    assert (answer.status_code, answer.content) == (status, b"")
    assert (await scene.http.post(url, content=b"{}")).status_code == 400
    assert not caplog.records


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


CUTS = ["cut_before", "cut_after", "cut_midway", "garbage", "hang", "hang_after"]
SILENT = {"hang", "hang_after"}


@pytest.mark.parametrize("what", CUTS)
async def test_a_pop_whose_answer_is_lost_has_leased_its_item_or_not(scene: Scene, what: str):
    item_id = scene.push()
    await scene.on("wandb", what, "popFromRunQueue")
    async with scene.patient_unless(what in SILENT) as asking:
        with pytest.raises(errors.Transient):
            await asking.queue.pop(None)
    is_carried_out = what not in {"cut_before", "hang"}
    assert scene.state_of(item_id) == ("LEASED" if is_carried_out else "PENDING")
    assert (await scene.queue.pop(None) is None) == is_carried_out


@pytest.mark.parametrize("what", CUTS)
async def test_a_create_whose_answer_is_lost_has_made_a_job_or_not(scene: Scene, what: str):
    await scene.on("vertex", what, "CreateCustomJob")
    async with scene.patient_unless(what in SILENT) as asking:
        with pytest.raises(errors.OutcomeUnknown):
            await asking.create("lost", test=what)
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
            await scene.http.post(url, timeout=BRIEF_SECONDS if what in SILENT else HANG_SECONDS)
    state = (await scene.jobs.get(created.name)).state
    is_carried_out = what not in {"cut_before", "hang"}
    assert (state != JobState.JOB_STATE_QUEUED) == is_carried_out


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
async def test_an_answer_without_a_body_is_cut_in_the_middle_too(scene: Scene, method: str):
    url = f"{scene.sandbox.wandb_url}/storage/run/team/p/run-1/{method}"
    await scene.http.put(url, content=b"before")
    cut = await scene.on("wandb", "cut_midway")
    with pytest.raises(httpx.TransportError):
        await scene.http.request(method, url, content=b"after")
    assert cut.hit == 1
    assert (await scene.http.get(url)).content == (b"after" if method == "PUT" else b"before")


async def test_a_message_as_long_as_may_be_arrives_whole(scene: Scene):
    created = await scene.create()
    for message in ("x" * 3000, "é" * 500):
        for more in ({}, {"retry_after_seconds": 86_400 * 365}):
            await scene.on("vertex", "answer", "GetCustomJob", code="INTERNAL", message=message, **more)
            with pytest.raises(errors.Transient, match=message):
                await scene.jobs.get(created.name, attempts=1)


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


async def test_a_slow_call_is_not_carried_out_for_who_has_given_up(scene: Scene):
    created, item_id = await scene.create(), scene.push()
    before = scene.sandbox.vertex.calls.copy()
    for server, operation in (
        ("vertex", "CreateCustomJob"), ("vertex", "CancelCustomJob"), ("wandb", "popFromRunQueue")
    ):  # fmt: skip
        await scene.on(server, "slow", operation, seconds=3600)
    async with scene.hurried() as hurried:
        with pytest.raises(errors.OutcomeUnknown):
            await hurried.create("late", test="slow")
        with pytest.raises(errors.Transient):
            await hurried.queue.pop(None)
    with pytest.raises(httpx.TimeoutException):
        await scene.http.post(
            f"{scene.sandbox.vertex_rest_url}/v1/{created.name}:cancel", timeout=BRIEF_SECONDS
        )
    asked = {"CreateCustomJob": 1, "CancelCustomJob": 1}
    await until(lambda: scene.sandbox.vertex.calls - before == asked)
    await scene.sandbox.faults.clear()
    assert await scene.listed("slow") == []
    assert (await scene.jobs.get(created.name)).state == JobState.JOB_STATE_QUEUED
    assert (await scene.pop()).item_id == item_id


@pytest.mark.parametrize("what", ["cut_after", "garbage", "hang_after"])
async def test_who_is_to_lose_the_answer_does_not_hear_of_a_refusal_either(scene: Scene, what: str):
    await scene.on("vertex", what, "GetCustomJob", times=2)
    async with scene.patient_unless(what in SILENT) as asking:
        with pytest.raises(errors.Transient):
            await asking.jobs.get(f"{PARENT}/customJobs/1", attempts=1)
    try:
        answer = await scene.http.get(
            f"{scene.sandbox.vertex_rest_url}/v1/{PARENT}/customJobs/1", timeout=BRIEF_SECONDS
        )
    except httpx.TransportError:
        return
    assert what == "garbage"
    assert "does not exist" not in answer.text


@pytest.mark.parametrize("server", ["wandb", "vertex"])
async def test_a_server_goes_away_and_comes_back_on_its_port(
    faulty_sandbox: Sandbox, server: str, scene: Scene
):
    created, item_id = await scene.create(), scene.push()
    urls = {"wandb": faulty_sandbox.wandb_url, "vertex": faulty_sandbox.vertex_rest_url}
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
    assert (await scene.http.delete(f"{faulty_sandbox.faults_url}/{outage.id}")).status_code == 200
    # A channel that was refused waits a second before it tries again; this one is the last of its users.
    await scene.jobs.aclose()
    async with clients(faulty_sandbox, scene.queue.queue) as later:
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


@pytest.mark.parametrize("server", ["wandb", "vertex"])
async def test_outages_may_begin_and_end_all_at_once(scene: Scene, server: str):
    url, down = scene.sandbox.faults_url, {"server": server, "what": "down"}
    both = [call for _ in range(5) for call in (scene.http.post(url, json=down), scene.http.delete(url))]
    assert {answer.status_code for answer in await asyncio.gather(*both)} == {200, 201}
    await scene.http.delete(url)
    for served in (scene.sandbox.wandb_url, scene.sandbox.vertex_rest_url):
        assert (await scene.http.get(served)).status_code == 404
    async with clients(scene.sandbox, scene.queue.queue) as later:
        assert await later.listed("none") == []


async def test_a_fault_of_any_number_may_be_asked_for(scene: Scene):
    for number in ("0", "9" * 5000, "x", "²"):
        for method in ("GET", "DELETE"):
            answer = await scene.http.request(method, f"{scene.sandbox.faults_url}/{number}")
            assert answer.status_code == 404


# --- the page


async def test_the_page_has_every_fault_and_its_examples_are_faults():
    text = PAGE.read_text()
    for what in What:
        assert f"`{what.value}`" in text, what
    examples = re.findall(r"`(\{\"server\".*?\})`|-d '(\{.*?\})'", text)
    faults = [Fault.model_validate_json(left or right) for left, right in examples]
    assert {fault.what for fault in faults} >= set(What) - WIRE
