"""JSON and documents about as deep as Python's stack: each has an answer, and what is taken is read again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio

from prefect_vertex_launch.sandbox.server import Sandbox
from tests.adapters.queue_client import CONFIG
from tests.eventually import HANG_SECONDS
from tests.sandbox.served_vertex import PARENT
from tests.sandbox_access import KnownEverywhere

pytestmark = pytest.mark.asyncio(loop_scope="module")
# From about 900 on there is JSON that Python reads in one place and neither writes nor reads in another.
LEVELS = (2, 99, 100, 101, *range(120, 900, 40), *range(900, 1000))


def deep(levels: int) -> str:
    return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)


def mutation(field: str, **values: Any) -> bytes:
    kind = field[0].upper() + field[1:] + "Input"
    query = f"mutation It($input: {kind}!) {{ {field}(input: $input) {{ __typename }} }}"
    return json.dumps({"query": query, "variables": {"input": values}}).encode()


def run(**values: Any) -> bytes:
    return mutation("upsertBucket", name="deep", entityName="team", modelName="p", **values)


def queue(**values: Any) -> bytes:
    names = {"entityName": "team", "projectName": "model-registry", "queueName": "deep"}
    return mutation(
        "upsertRunQueue", **names, resourceType="gcp-vertex", **{"resourceConfig": "{}", **values}
    )


def item(**values: Any) -> bytes:
    names = {"entityName": "team", "projectName": "model-registry", "queueName": "vertex"}
    return mutation("pushToRunQueueByName", **names, **values)


def filtered(text: str) -> bytes:
    query = 'query It($f: JSONString) { project(name: "p", entityName: "team") { runCount(filters: $f) } }'
    return json.dumps({"query": query, "variables": {"f": text}}).encode()


def document(levels: int) -> bytes:
    step = 'project(name: "p", entityName: "team") { run(name: "deep") {'
    inner = ' project { run(name: "deep") {' * (levels // 2)
    query = f"{{ {step} {inner} id {'}}' * (levels // 2)} }} }} }}"
    return json.dumps({"query": query}).encode()


def streamed(file: str) -> Callable[[int], bytes]:
    return lambda levels: json.dumps({"files": {file: {"content": [deep(levels)]}}}).encode()


GRAPHQL: dict[str, Callable[[int], bytes]] = {
    "a run's config": lambda levels: run(config=deep(levels)),
    "a run's summary": lambda levels: run(summaryMetrics=deep(levels)),
    "a queue's config": lambda levels: queue(resourceConfig=deep(levels)),
    "a queue's links": lambda levels: queue(externalLinks=deep(levels)),
    "a queue's variables": lambda levels: queue(
        templateVariables='{"v": {"schema": {"type": "string", "x": ' + deep(levels) + "}}}"
    ),
    "a run spec": lambda levels: item(runSpec=deep(levels)),
    "an item's variables": lambda levels: item(runSpec="{}", templateVariableValues=deep(levels)),
    "filters": lambda levels: filtered(deep(levels)),
    "the variables": lambda levels: (
        b'{"query": "{ viewer { id } }", "variables": ' + deep(levels).encode() + b"}"
    ),
    "the document": document,
}
STREAMS = {f"the stream's {file}": streamed(file) for file in ("wandb-summary.json", "wandb-history.jsonl")}
BODIES: dict[str, Callable[[int], bytes]] = {
    **GRAPHQL, **STREAMS, **dict.fromkeys(["a job", "a fault"], lambda levels: deep(levels).encode())
}  # fmt: skip
READ_AGAIN = """{ project(name: "p", entityName: "team") {
  runs { edges { node { config summaryMetrics historyKeys history(samples: 9) historyTail } } } }
  queues: project(name: "model-registry", entityName: "team") {
    runQueues { externalLinks runQueueItems { edges { node { runSpec } } } } } }"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    log = tmp_path_factory.mktemp("log") / "requests.jsonl"
    async with Sandbox(entity="team", is_manual=True, faults_port=0, request_log=log) as running:
        queues = running.wandb.queues
        config = queues.create_config("team", "gcp-vertex", json.dumps(CONFIG), None)
        queues.create("team", "model-registry", "vertex", created_by="ann", resource_config_id=config.id)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(auth=KnownEverywhere(sandbox), timeout=HANG_SECONDS) as client:
        yield client


@pytest.mark.parametrize("name", BODIES)
async def test_any_depth_has_an_answer_and_what_is_taken_can_be_read_again(
    sandbox: Sandbox, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, name: str
):
    graphql = f"{sandbox.wandb_url}/graphql"
    stream = f"{sandbox.wandb_url}/files/team/p/deep/file_stream"
    others = {"a job": f"{sandbox.vertex_rest_url}/v1/{PARENT}/customJobs", "a fault": sandbox.faults_url}
    url = graphql if name in GRAPHQL else stream if name in STREAMS else others[name]
    for levels in LEVELS:
        answer = await http.post(url, content=BODIES[name](levels))
        assert answer.status_code in {200, 400}, (levels, answer.text)
        if answer.status_code == 200:
            again = await http.post(graphql, json={"query": READ_AGAIN})
            assert again.status_code == 200, (levels, again.text)
    assert not caplog.records
