"""What a launch agent says of itself at W&B: its queues, its status, and the files of failed items."""

from __future__ import annotations

import json

import httpx
import pytest

from prefect_vertex_launch.core.errors import NotFound, PermissionDenied, Refused, Transient
from prefect_vertex_launch.wandb.files import MAX_FILE_BYTES
from prefect_vertex_launch.wandb.queue import AgentStatus, error_file
from tests.adapters.queue_client import errors, mocked
from tests.sandbox.real_wandb import API_KEY


async def test_an_agent_registers_beats_and_hears_that_it_shall_end(queue, backend):
    agent = await queue.register({"max_jobs": 3})
    assert agent.name
    assert not agent.stop_polling
    (row,) = backend.agents.all()
    assert row.queue_ids == [backend.queue("vertex").id]
    assert json.loads(row.config) == {"max_jobs": 3}
    for status in (AgentStatus.RUNNING, AgentStatus.RUNNING, AgentStatus.POLLING, AgentStatus.KILLED):
        await queue.heartbeat(agent.agent_id, status)
        assert (await queue.read_agent(agent.agent_id)).status == status.value
    assert row.statuses == ["POLLING", "RUNNING", "POLLING", "KILLED"]
    backend.stop_polling(agent.agent_id)
    assert (await queue.read_agent(agent.agent_id)).stop_polling


async def test_an_agent_registers_for_several_queues_at_once(queue, backend):
    other = backend.queues.create("team", "model-registry", "other", created_by="ann")
    ids = [(await queue.find_queue()).queue_id, other.id]
    await queue.register({}, ids)
    (row,) = backend.agents.all()
    assert row.queue_ids == ids


async def test_a_failed_item_names_a_file_in_the_agents_hidden_run(queue, backend):
    """Under the name of the agent, where W&B's own agent puts it and the page of the item looks."""
    item_id = backend.push_raw("vertex", "{}")
    agent = await queue.register({})
    path = error_file(item_id)
    await queue.open_agent_run(agent.name)
    await queue.upload_agent_file(agent.name, path, "erster Grund: ∅\n")
    await queue.upload_agent_file(agent.name, path, "zweiter Grund: ∅\n")
    await queue.warn(item_id, "slow", "agent")
    await queue.warn(item_id, "slower", "run")
    await queue.fail(item_id, "no bucket", "agent", [path])

    assert path == f"{item_id}/error/error.log"
    run = backend.run("model-registry", agent.name)
    assert (run.state, run.job_type) == ("running", "sweep-controller")
    assert backend.file("model-registry", agent.name, path) == "zweiter Grund: ∅\n".encode()
    assert [
        (notice["kind"], notice["message"], notice["stage"]) for notice in backend.item(item_id).notices
    ] == [
        ("warning", "slow", "agent"),
        ("warning", "slower", "run"),
        ("error", "no bucket", "agent"),
    ]
    assert backend.item(item_id).error["filePaths"] == [path]


async def test_an_agents_run_is_opened_twice_and_ends_as_finished(queue, backend):
    await queue.open_agent_run("agent-1")
    await queue.open_agent_run("agent-1")
    await queue.close_agent_run("agent-1")
    run = backend.run("model-registry", "agent-1")
    assert (run.state, run.exit_code) == ("finished", 0)
    await queue.open_agent_run("agent-1")
    assert backend.run("model-registry", "agent-1").state == "running"
    assert len(backend.runs.of_project("team", "model-registry")) == 1


async def test_a_file_of_a_run_that_was_never_opened_is_not_found(queue):
    with pytest.raises(NotFound):
        await queue.upload_agent_file("nobody", "a/error/error.log", "why")


async def test_of_a_long_file_the_start_and_the_end_are_kept(queue, backend):
    await queue.open_agent_run("agent")
    # Three bytes each, so that both cuts fall inside of a character; and what UTF-8 cannot say.
    await queue.upload_agent_file("agent", "long", "start" + "…" * MAX_FILE_BYTES + "\ud800end")
    content = backend.file("model-registry", "agent", "long")
    text = content.decode()
    assert text.startswith("start…")
    assert text.endswith("…?end")
    assert "bytes left out" in text
    assert len(content) < MAX_FILE_BYTES + 100


BUCKET = "https://bucket.test/error.log?signature=s1gned"


def uploading(answer_of_bucket, *, url: str = BUCKET):
    """A W&B that sends uploads to a bucket, and the requests that both have got."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.method == "PUT":
            return answer_of_bucket(request)
        files = [{"name": "f", "uploadUrl": url}]
        created = {"runID": "r", "uploadHeaders": ["Content-Type: text/plain", "x-ms-blob-type:BlockBlob"]}
        return httpx.Response(200, json={"data": {"createRunFiles": {**created, "files": files}}})

    return mocked(answer), seen


async def test_a_bucket_gets_the_file_with_the_headers_asked_for_and_without_the_key():
    wandb, seen = uploading(lambda _request: httpx.Response(200))
    async with wandb:
        await wandb.upload_agent_file("agent", "f", "why")
    asked, put = seen
    assert asked.headers["Authorization"]
    assert "Authorization" not in put.headers
    assert str(put.url) == BUCKET
    assert put.content == b"why"
    assert (put.headers["Content-Type"], put.headers["x-ms-blob-type"]) == ("text/plain", "BlockBlob")


async def test_a_server_that_keeps_files_itself_gets_the_key_with_them():
    wandb, seen = uploading(lambda _request: httpx.Response(200), url="/storage/error.log")
    async with wandb:
        await wandb.upload_agent_file("agent", "f", "why")
    assert str(seen[1].url) == "https://wandb.test/storage/error.log"
    assert seen[1].headers["Authorization"]


async def test_a_bucket_that_is_busy_is_asked_again():
    answers = iter([httpx.Response(503), httpx.Response(429), httpx.Response(200)])
    wandb, seen = uploading(lambda _request: next(answers))
    async with wandb:
        await wandb.upload_agent_file("agent", "f", "why")
    assert [request.content for request in seen if request.method == "PUT"] == [b"why"] * 3
    assert wandb.calls == {"CreateRunFiles": 1, "upload": 3}


@pytest.mark.parametrize(("status", "error"), [(401, Refused), (403, PermissionDenied), (500, Transient)])
async def test_a_bucket_that_refuses_is_named_without_its_signature(status, error):
    body = "<Error><StringToSign>s1gned</StringToSign></Error>"
    wandb, _ = uploading(lambda _request: httpx.Response(status, text=body))
    async with wandb:
        with pytest.raises(error, match=r"bucket\.test") as caught:
            await wandb.upload_agent_file("agent", "f", "why")
    assert "s1gned" not in str(caught.value)
    assert API_KEY not in str(caught.value)


@pytest.mark.parametrize("answer", [None, {"files": []}, {"files": [{"name": "f", "uploadUrl": None}]}])
async def test_no_address_to_upload_to_is_refused(answer):
    async with mocked(lambda _: httpx.Response(200, json={"data": {"createRunFiles": answer}})) as wandb:
        with pytest.raises(Refused, match="no address to upload f to"):
            await wandb.upload_agent_file("agent", "f", "why")


async def test_a_run_that_cannot_be_opened_or_closed_says_so():
    async with mocked(lambda _: httpx.Response(200, json={"data": {"upsertBucket": None}})) as wandb:
        with pytest.raises(Refused, match="agent's run"):
            await wandb.open_agent_run("agent")
    async with mocked(lambda _request: errors(403, "permission denied")) as wandb:
        with pytest.raises(PermissionDenied):
            await wandb.close_agent_run("agent")
