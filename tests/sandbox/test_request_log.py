"""The sandbox's log of what it was asked and what it answered."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from prefect_vertex_launch.core.errors import NotFound
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.sandbox.request_log import MAX_BODY_BYTES
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.sandbox.start_refusal import StartRefusal
from tests.eventually import HANG_SECONDS
from tests.sandbox_access import KnownEverywhere, jobs_in

CANARY = "c4nary" * 7
POOL = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 1,
    "container_spec": {"image_uri": "i", "env": [{"name": "SECRET", "value": CANARY}]},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of one sandbox that was asked for one thing of each kind."""
    path = tmp_path_factory.mktemp("log") / "requests.jsonl"
    async with Sandbox(request_log=path, is_manual=True) as sandbox:
        async with httpx.AsyncClient(auth=KnownEverywhere(sandbox), timeout=HANG_SECONDS) as http:
            wandb = f"{sandbox.wandb_url}/graphql"
            await http.post(wandb, json={"query": "query Who { viewer { entity } }", "operationName": ""})
            await http.post(wandb, content=b"{")
            await http.post(f"{sandbox.wandb_url}/files/sandbox/p/r/file_stream", json={"exitcode": 0})
            await http.put(f"{sandbox.wandb_url}/storage/big", content=b"x" * (MAX_BODY_BYTES + 1))
            await http.put(f"{sandbox.wandb_url}/storage/binary", content=b"\xff\n")
            await http.get(f"{sandbox.vertex_rest_url}/v1/nothing?a=b")
        jobs = jobs_in(sandbox)
        await jobs.create(CustomJob(display_name="j", job_spec={"worker_pool_specs": [POOL]}))
        with pytest.raises(NotFound):
            await jobs.get(f"{jobs.parent}/customJobs/1")
        await jobs.aclose()
        assert sandbox.api_key not in path.read_text()
    return path


@pytest.fixture(scope="module")
def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def only(lines: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    (line,) = (line for line in lines if fields.items() <= line.items())
    return line


def test_every_request_of_every_server_is_a_line(lines: list[dict[str, Any]]):
    assert [(line["server"], line["status"]) for line in lines] == [
        ("wandb", 200),
        ("wandb", 400),
        ("wandb", 200),
        ("wandb", 200),
        ("wandb", 200),
        ("vertex-rest", 404),
        ("google", 200),  # the token of the calls that follow
        ("vertex-grpc", "OK"),
        ("vertex-grpc", "NOT_FOUND"),
    ]
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_a_line_says_what_was_asked_and_what_was_answered(lines: list[dict[str, Any]]):
    who = only(lines, operation="Who")
    assert (who["method"], who["path"]) == ("POST", "/graphql")
    assert who["request"]["query"] == "query Who { viewer { entity } }"
    assert who["response"] == {"data": {"viewer": {"entity": "sandbox"}}}
    assert only(lines, path="/v1/nothing?a=b")["response"]["error"]["status"] == "NOT_FOUND"
    missing = only(lines, operation="GetCustomJob")
    assert missing["path"] == "/google.cloud.aiplatform.v1.JobService/GetCustomJob"
    assert missing["request"]["name"].endswith("customJobs/1")
    assert "does not exist" in missing["response"]


def test_the_key_in_the_header_is_left_out_and_a_secret_in_a_body_is_found(lines: list[dict[str, Any]]):
    assert only(lines, operation="Who")["headers"]["authorization"] == "REDACTED"
    assert [line["operation"] for line in lines if CANARY in json.dumps(line)] == ["CreateCustomJob"]
    created = only(lines, operation="CreateCustomJob")
    for job in (created["request"]["customJob"], created["response"]):
        assert job["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["env"][0]["value"] == CANARY


def test_a_body_is_kept_as_text_where_it_is_no_json_and_up_to_its_bound(lines: list[dict[str, Any]]):
    assert only(lines, status=400)["request"] == "{"
    assert only(lines, path="/storage/big")["request"] == "x" * MAX_BODY_BYTES
    assert only(lines, path="/storage/binary")["request"] == "\\xff\n"
    assert only(lines, path="/storage/big")["response"] is None


def test_only_its_owner_may_read_it(log: Path):
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(StartRefusal, match=r"request log.*No such file"):
        Sandbox(request_log=tmp_path / "none" / "requests.jsonl")


async def test_a_log_is_continued(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    for _ in range(2):
        async with Sandbox(request_log=path) as sandbox, httpx.AsyncClient(timeout=HANG_SECONDS) as http:
            await http.get(f"{sandbox.vertex_rest_url}/v1/nothing")
    assert len(path.read_text().splitlines()) == 2
