"""What nobody foresaw fails an item with a reference, or makes a launch wait. It ends no agent."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.states import Pending
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.flows.launch import launch
from prefect_vertex_launch.launch import render, wait
from prefect_vertex_launch.sandbox.web_server import WebServer
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import HANG_SECONDS, finished

SECRET = 'it\'s a "secret" that\nnobody may read'


def with_key(queue: LaunchQueue, *args: str) -> str:
    return queue.push("sandbox/no-wandb", *args, _wandb_api_key=SECRET)


async def test_an_item_that_nobody_foresaw_is_failed_with_a_reference_to_the_log(
    queue: LaunchQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    render_job = render.render_job

    def stumble(spec: Any, config: Any, context: Any) -> Any:
        if "poison" in spec.overrides.args:
            raise LookupError(f"{SECRET!r} and {SECRET}")
        return render_job(spec, config, context)

    monkeypatch.setattr(render, "render_job", stumble)
    poisoned, good = with_key(queue, "poison"), queue.push("sandbox/no-wandb")
    ended = await agent(queues=[queue.name], drain=True, return_state=True)
    assert ended.is_completed()
    message = queue.item(poisoned).error["message"]
    assert "LookupError in " in message
    [reference] = re.findall(r"has under ([0-9a-f]{8})", message)
    launched = (await queue.launches())[poisoned]
    assert launched.state_name == "Unforeseen"
    assert launched.state is not None
    assert reference in (launched.state.message or "")
    traceback = next(text for text in caplog.messages if f"error {reference}" in text)
    assert "in stumble" in traceback
    assert await queue.jobs_of(poisoned) == []
    assert len(await queue.jobs_of(good)) == 1
    for text in (message, launched.state.message, caplog.text):
        assert "nobody may read" not in text


@pytest.mark.slow
async def test_a_job_is_followed_to_its_end_whatever_goes_wrong_beside_it(
    queue: LaunchQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("prefect_vertex_launch.launch.outage.FIRST_PAUSE_SECONDS", 0.1)
    is_first = itertools.count()
    duties = wait.timeouts.duties

    def stumble(launch: Any) -> Any:
        if next(is_first) == 0:
            raise LookupError("nobody foresaw it")
        return duties(launch)

    monkeypatch.setattr(wait.timeouts, "duties", stumble)
    item_id = queue.push("sandbox/train")
    await agent(queues=[queue.name], drain=True, return_state=True)
    assert [job.launch_state for job in await queue.jobs()] == [LaunchState.SUCCEEDED]
    assert (await queue.launches())[item_id].state_name == "Completed"
    assert "may still run" in caplog.text


@pytest.mark.slow
async def test_a_launch_whose_parameters_somebody_has_spoilt_is_ended_and_the_others_go_on(
    queue: LaunchQueue,
):
    async with get_client() as client:
        flow_id = await client.create_flow_from_name("launch")
        item_id = queue.push("sandbox/no-wandb")
        tags = ["vertex-launch", queue.identity.tag, f"item:{item_id}"]
        body = {"flow_id": str(flow_id), "name": "spoilt", "parameters": {"item": 5}, "tags": tags}
        spoilt = (await client.request("POST", "/flow_runs/", json=body)).json()["id"]
        await client.set_flow_run_state(spoilt, Pending(), force=True)
    good = queue.push("sandbox/no-wandb")
    ended = await agent(queues=[queue.name], drain=True, return_state=True)
    assert ended.is_completed()
    assert len(await queue.jobs_of(good)) == 1


@asynccontextmanager
async def answering_pages(server: PrefectServer, every: int) -> AsyncIterator[str]:
    """Stand before a Prefect server, and give a page instead of each so many-th answer."""
    counted = itertools.count(1)
    root = server.api_url.removesuffix("/api")
    async with httpx.AsyncClient(base_url=root, timeout=HANG_SECONDS) as client:

        async def forward(request: Request) -> Response:
            headers = {name: value for name, value in request.headers.items() if name != "host"}
            answer = await client.request(
                request.method, request.url.path, params=request.query_params.multi_items(),
                content=await request.body(), headers=headers,
            )  # fmt: skip
            if answer.is_success and next(counted) % every == 0:
                return HTMLResponse("<html>Please log in</html>")
            return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        web = WebServer(Starlette(routes=[Route("/{path:path}", forward, methods=methods)]), 0)
        await web.start()
        try:
            yield f"{web.url}/api"
        finally:
            await web.aclose()


@pytest.mark.slow
async def test_pages_in_the_place_of_prefect_s_answers_end_neither_agents_nor_launches(
    queue: LaunchQueue, prefect_api: PrefectServer
):
    items = [queue.push("sandbox/train") for _ in range(5)]
    async with answering_pages(prefect_api, every=30) as api_url:
        command = [
            sys.executable,
            "-m",
            "prefect_vertex_launch.cli.main",
            "agent",
            "--drain",
            "--queue",
            queue.name,
        ]
        process = await asyncio.create_subprocess_exec(
            *command, env=prefect_api.environment | {"PREFECT_API_URL": api_url},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        printed, _ = await finished(process.communicate())
    assert process.returncode == 0, printed.decode()
    launches = await queue.launches()
    assert {item: launches[item].state_name for item in items} == dict.fromkeys(items, "Completed")
    assert len(await queue.jobs()) == 5


async def test_a_block_that_cannot_be_loaded_shows_no_key_and_stops_no_other(
    queue: LaunchQueue, caplog: pytest.LogCaptureFixture
):
    broken = LaunchQueue(queue.sandbox)
    await broken.create()
    async with get_client() as client:
        document = await client.read_block_document_by_name(broken.name, "wandb-credentials")
        spoilt = BlockDocumentUpdate(data={"base_url": queue.sandbox.api_key}, merge_existing_data=True)
        await client.update_block_document(document.id, spoilt)
    item_id = queue.push("sandbox/no-wandb")
    ended = await agent(queues=[broken.name, queue.name], drain=True, return_state=True)
    assert ended.is_failed()
    message = ended.message or ""
    assert f"block {broken.name}: wandb_credentials.base_url: is not valid" in message
    assert queue.sandbox.api_key not in message + caplog.text
    assert queue.item(item_id).state == "FAILED"
    alone = await launch(queue=broken.name, return_state=True)
    assert "Open the block in the Prefect UI" in (alone.message or "")
    assert queue.sandbox.api_key not in (alone.message or "") + caplog.text
