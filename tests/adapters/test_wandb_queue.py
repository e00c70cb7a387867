"""The queue client against the W&B sandbox over HTTP, and against answers no honest server gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr

from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    Conflict,
    NotFound,
    PermissionDenied,
    Refused,
    Transient,
)
from prefect_vertex_launch.core.states import ItemState
from prefect_vertex_launch.wandb.queue import WandbQueue
from tests.adapters.queue_client import CONFIG, answering, errors, mocked, open_queue
from tests.sandbox.real_wandb import API_KEY

SPEC = {"entity": "team", "project": "p", "docker": {"docker_image": "img"}, "_wandb_api_key": "k" * 40}


async def test_a_queue_is_found_with_its_config(queue):
    found = await queue.find_queue()
    assert (found.name, found.resource, found.prioritization_mode) == ("vertex", "gcp-vertex", "V0")
    assert found.config == CONFIG


async def test_a_queue_that_is_not_there_is_answered_with_those_that_are(backend):
    async with open_queue(backend.base_url, name="vertx") as queue:
        with pytest.raises(NotFound, match=r"queues of team are: vertex.*Did you mean vertex\?"):
            await queue.find_queue()


async def test_a_wrong_key_is_named_with_its_server_and_never_shown(backend):
    wrong = "w" * 40
    async with open_queue(backend.base_url, key=wrong) as queue:
        with pytest.raises(AuthenticationFailed) as caught:
            await queue.find_queue()
    text = str(caught.value)
    assert backend.base_url in text
    assert f"{backend.base_url}/authorize" in text
    assert "WandbCredentials" in text
    assert wrong not in text
    assert queue.calls.total() == 1


async def test_an_item_goes_from_pending_to_claimed_once(queue, backend):
    item_id = backend.push_raw("vertex", json.dumps(SPEC))
    assert (await queue.read_item(item_id)).state is ItemState.PENDING
    popped = await queue.pop(None)
    assert popped is not None
    assert popped.item_id == item_id
    assert popped.payload == {key: value for key, value in SPEC.items() if key != "_wandb_api_key"}
    assert popped.api_key == SecretStr("k" * 40)
    assert "kkk" not in repr(popped)
    assert (await queue.read_item(item_id)).state is ItemState.LEASED
    await queue.acknowledge(item_id, "run1")
    item = await queue.read_item(item_id)
    assert (item.state, item.run_id) == (ItemState.CLAIMED, "run1")
    assert await queue.pop(None) is None


async def test_claiming_again_for_the_same_run_succeeds_and_for_another_says_who_has_it(queue, backend):
    item_id = backend.push_raw("vertex", json.dumps(SPEC))
    await queue.pop(None)
    await queue.acknowledge(item_id, "run1")
    await queue.acknowledge(item_id, "run1")
    with pytest.raises(Conflict, match="run run1 has it"):
        await queue.acknowledge(item_id, "run2")


async def test_an_item_that_was_never_leased_or_is_gone_cannot_be_claimed(queue, backend):
    item_id = backend.push_raw("vertex", json.dumps(SPEC))
    with pytest.raises(Conflict, match="it is PENDING"):
        await queue.acknowledge(item_id, "run1")


async def test_an_item_is_failed_and_warned_with_a_message(queue, backend):
    item_id = backend.push_raw("vertex", json.dumps(SPEC))
    await queue.warn(item_id, "careful", "agent")
    await queue.fail(item_id, "no bucket", "agent", ["a/error.log"])
    assert (await queue.read_item(item_id)).state is ItemState.FAILED


@pytest.mark.parametrize(
    "text", ["{not json", '{"a": ' * 10_000 + "1" + "}" * 10_000], ids=["malformed", "deep"]
)
async def test_an_item_whose_spec_cannot_be_read_is_still_an_item(queue, backend, text):
    item_id = backend.push_raw("vertex", text)
    popped = await queue.pop(None)
    assert popped is not None
    assert popped.item_id == item_id
    if popped.payload is None:
        assert item_id in str(popped.problem)
    await queue.acknowledge(item_id, "run1")
    await queue.fail(item_id, str(popped.problem), "agent")


async def test_a_spec_of_a_megabyte_is_read(queue, backend):
    backend.push_raw("vertex", json.dumps({"x": "y" * 1_000_000}))
    popped = await queue.pop(None)
    assert popped is not None
    assert popped.size_bytes > 1_000_000


# What the sandbox does not produce


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, PermissionDenied), (404, NotFound), (400, Refused), (422, Refused), (409, Conflict)],
)
async def test_a_refusal_by_status_is_raised_at_once_in_the_servers_words(status, error):
    async with mocked(answering({"errors": [{"message": f"no, {API_KEY}"}]}, status)) as queue:
        with pytest.raises(error, match="no, …") as caught:
            await queue.read_agent("a")
    assert API_KEY not in str(caught.value)
    assert queue.calls.total() == 1


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("permission denied", PermissionDenied),
        ("run queue not found", NotFound),
        ("rate limit exceeded", Transient),
        ("Internal Server Error", Transient),
        ("Cannot query field", Refused),
    ],
)
async def test_an_error_inside_of_a_200_is_known_by_its_words(message, error):
    async with mocked(answering({"errors": [{"message": message}], "data": None})) as queue:
        with pytest.raises(error):
            await queue.read_agent("a")


@pytest.mark.parametrize("name", ["rate limit", "permission denied", "a-timeout", "forbidden " * 80])
@pytest.mark.parametrize("words", ["{} is no agent", "there is no agent '{}'", 'no "{}" for this key'])
async def test_a_name_that_the_server_quotes_does_not_decide_what_its_error_means(name, words):
    async with mocked(answering({"errors": [{"message": words.format(name)}], "data": None})) as queue:
        with pytest.raises(Refused):
            await queue.read_agent(name)
    async with mocked(answering({"errors": [{"message": "no agent 'of the rate limit'"}]})) as queue:
        with pytest.raises(Refused):
            await queue.read_agent("a")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_read_is_tried_again_and_a_pop_never_is(status):
    async with mocked(answering({}, status)) as queue:
        with pytest.raises(Transient):
            await queue.read_agent("a")
        with pytest.raises(Transient):
            await queue.pop("a")
    assert queue.calls == {"LaunchAgent": 4, "popFromRunQueue": 1}


async def test_the_pause_the_server_asks_for_is_kept():
    async with mocked(answering({}, 429, **{"Retry-After": "120"})) as queue:
        with pytest.raises(Transient) as caught:
            await queue.read_agent("a")
    assert caught.value.retry_after_seconds == 120


async def test_a_moment_that_the_server_names_is_held_against_its_own_clock():
    day = {"Retry-After": "Wed, 01 Jan 2020 00:02:00 GMT", "Date": "Wed, 01 Jan 2020 00:00:00 GMT"}
    async with mocked(answering({}, 429, **day)) as queue:
        with pytest.raises(Transient) as caught:
            await queue.read_agent("a")
    assert caught.value.retry_after_seconds == 120


async def test_a_lost_answer_of_a_pop_is_transient_and_sent_once():
    def lost(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("connection reset", request=request)

    async with mocked(lost) as queue:
        with pytest.raises(Transient, match="ReadError"):
            await queue.pop("a")
    assert queue.calls == {"popFromRunQueue": 1}


async def test_an_answer_that_never_comes_to_its_end_is_no_answer():
    class Drops(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b" "
                await asyncio.sleep(0)

    dripping = httpx.MockTransport(lambda _request: httpx.Response(200, stream=Drops()))
    queue = open_queue("https://wandb.test", transport=dripping, timeout_seconds=0.01)
    with pytest.raises(Transient, match="did not answer popFromRunQueue: TimeoutError"):
        await queue.pop(None)


async def test_a_claim_whose_answer_was_lost_is_found_to_be_ours():
    answers = iter(
        [
            httpx.Response(502),
            httpx.Response(409, json={"errors": [{"message": "item already claimed"}]}),
            httpx.Response(
                200,
                json={
                    "data": {
                        "project": {
                            "runQueue": {
                                "runQueueItem": {"id": "i", "state": "CLAIMED", "associatedRunId": "run1"}
                            }
                        }
                    }
                },
            ),
        ]
    )
    async with mocked(lambda _request: next(answers)) as queue:
        await queue.acknowledge("i", "run1")
    assert queue.calls == {"ackRunQueueItem": 2, "GetRunQueueItem": 1}


def item_answer(state: str, run_id: str | None) -> httpx.Response:
    item = {"id": "i", "state": state, "associatedRunId": run_id}
    return httpx.Response(200, json={"data": {"project": {"runQueue": {"runQueueItem": item}}}})


def claim_answers(claim: httpx.Response, item: httpx.Response) -> WandbQueue:
    """Return a queue that answers every claim and every read of the item with one answer each."""

    def answer(request: httpx.Request) -> httpx.Response:
        return claim if json.loads(request.content)["operationName"] == "ackRunQueueItem" else item

    return mocked(answer)


NO_ITEM = httpx.Response(200, json={"data": {"project": {"runQueue": {"runQueueItem": None}}}})
REFUSALS = [
    (errors(400, "cannot ack item in state CLAIMED"), Refused),
    (errors(200, "cannot ack item in state CLAIMED"), Refused),
    (errors(403, "permission denied"), PermissionDenied),
    (errors(404, "item not found"), NotFound),
    (errors(409, "item already claimed"), Conflict),
    (httpx.Response(200, json={"data": {"ackRunQueueItem": {"success": False}}}), Conflict),
    (httpx.Response(200, json={"data": {"ackRunQueueItem": None}}), Conflict),
]


@pytest.mark.parametrize(("claim", "_error"), REFUSALS)
async def test_every_kind_of_refused_claim_is_checked_against_the_item(claim, _error):
    async with claim_answers(claim, item_answer("CLAIMED", "run1")) as queue:
        await queue.acknowledge("i", "run1")
    assert queue.calls == {"ackRunQueueItem": 1, "GetRunQueueItem": 1}


@pytest.mark.parametrize(("claim", "error"), REFUSALS)
async def test_a_refused_claim_of_an_item_that_is_still_leased_is_said_in_wandbs_words(claim, error):
    async with claim_answers(claim, item_answer("LEASED", None)) as queue:
        with pytest.raises(error) as caught:
            await queue.acknowledge("i", "run1")
    if error is not Conflict:
        assert claim.json()["errors"][0]["message"] in str(caught.value)


@pytest.mark.parametrize(("claim", "_error"), REFUSALS)
@pytest.mark.parametrize(
    ("state", "run_id", "words"), [("CLAIMED", "run2", "run run2 has it"), ("PENDING", None, "it is PENDING")]
)
async def test_a_refused_claim_of_an_item_that_another_agent_gets_is_a_conflict(
    claim, _error, state, run_id, words
):
    """Not the refusal itself: for that the launch would fail the item, which is not ours to fail."""
    async with claim_answers(claim, item_answer(state, run_id)) as queue:
        with pytest.raises(Conflict, match=words):
            await queue.acknowledge("i", "run1")


@pytest.mark.parametrize(
    ("claim", "item", "error"),
    [
        (errors(404, "item not found"), NO_ITEM, Conflict),
        (errors(409, "item already claimed"), NO_ITEM, Conflict),
        (errors(400, "run id is not valid"), NO_ITEM, Refused),
        (errors(403, "permission denied"), NO_ITEM, PermissionDenied),
        (errors(400, "run id is not valid"), errors(403, "permission denied"), Refused),
        (errors(409, "item already claimed"), errors(403, "permission denied"), Conflict),
        (errors(400, "run id is not valid"), errors(401, ""), AuthenticationFailed),
        (errors(400, "run id is not valid"), errors(503, ""), Transient),
    ],
)
async def test_a_refused_claim_whose_item_cannot_be_read(claim, item, error):
    async with claim_answers(claim, item) as queue:
        with pytest.raises(error):
            await queue.acknowledge("i", "run1")


async def test_a_claim_with_a_key_that_is_not_accepted_is_not_looked_into():
    async with claim_answers(errors(401, "no"), item_answer("CLAIMED", "run1")) as queue:
        with pytest.raises(AuthenticationFailed):
            await queue.acknowledge("i", "run1")
    assert queue.calls == {"ackRunQueueItem": 1}


@pytest.mark.parametrize(
    "body",
    [
        '{"data":{"popFromRunQueue":{"runQueueItemId":"aXRlbQ==","runSpec":{"runQueueItemId":"other",',
        '{"data":{"popFromRunQueue":{"runQueueItemId":"aXRlbQ==","runSpec":'
        + "[" * 10_000
        + "]" * 10_000
        + "}}}",
    ],
    ids=["cut off", "deep"],
)
async def test_the_item_is_found_in_an_answer_that_is_no_json(body):
    async with mocked(lambda _request: httpx.Response(200, text=body)) as queue:
        popped = await queue.pop("a")
    assert popped is not None
    assert (popped.item_id, popped.payload) == ("aXRlbQ==", None)
    assert popped.problem is not None


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", '"x"', "{}", '{"data": 1}', '{"data":{"popFromRunQueue":{}}}']
)
async def test_an_answer_without_an_item_is_transient(body):
    async with mocked(lambda _request: httpx.Response(200, text=body)) as queue:
        with pytest.raises(Transient):
            await queue.pop("a")


async def test_the_key_is_not_sent_to_another_host():
    seen: dict[str, str | None] = {}
    url = "https://bucket.test/wandb-job.json?signature=x"
    files = {
        "edges": [{"node": {"name": "wandb-job.json", "directUrl": url}}],
        "pageInfo": {"hasNextPage": False},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        seen[request.url.host] = request.headers.get("Authorization")
        if request.url.host == "bucket.test":
            job = {"source_type": "repo", "source": {"entrypoint": ["python", "train.py"]}}
            return httpx.Response(200, json=job)
        path = {"project": {"artifactCollection": {"artifactMembership": {"files": files}}}}
        return httpx.Response(200, json={"data": path})

    async with mocked(answer) as queue:
        source = await queue.read_job("team", "p", "train:v0")
    assert (source.kind, source.image_uri, source.entry_point) == ("repo", None, ("python", "train.py"))
    assert seen["wandb.test"]
    assert seen["bucket.test"] is None


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"source_type":"image","source":{}}', '{"source_type":"x","source":{}}']
)
async def test_a_job_file_that_is_none_is_refused(body):
    files = {
        "edges": [{"node": {"name": "wandb-job.json", "directUrl": "/f"}}],
        "pageInfo": {"hasNextPage": False},
    }
    path = {"project": {"artifactCollection": {"artifactMembership": {"files": files}}}}

    def answer(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(200, text=body)
            if request.method == "GET"
            else httpx.Response(200, json={"data": path})
        )

    async with mocked(answer) as queue:
        with pytest.raises(Refused, match="job team/p/train:v0"):
            await queue.read_job("team", "p", "train:v0")
