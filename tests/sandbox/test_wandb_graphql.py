"""What the W&B sandbox answers on the wire itself: who may ask, what is refused, and how."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.eventually import HANG_SECONDS
from tests.sandbox.real_wandb import API_KEY, WandbSandbox

pytestmark = pytest.mark.asyncio(loop_scope="session")

_POP = """mutation popFromRunQueue($entity: String!, $project: String!, $queueName: String!) {
  popFromRunQueue(input: {entityName: $entity, projectName: $project, queueName: $queueName}) {
    runQueueItemId runSpec
  }
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wire(wandb_sandbox: WandbSandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=wandb_sandbox.url, auth=("api", API_KEY), timeout=HANG_SECONDS
    ) as client:
        yield client


async def graphql(wire: httpx.AsyncClient, query: str, **variables: object) -> dict:
    answer = await wire.post("/graphql", json={"query": query, "variables": variables, "operationName": ""})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def make_queue(sandbox: WandbSandbox, name: str) -> None:
    sandbox.backend.queues.create("team", "model-registry", name, created_by="ann")


@pytest.mark.parametrize("path", ["/graphql", "/files/team/p/run/file_stream"])
async def test_a_wrong_or_missing_key_is_answered_with_401(wire, path):
    wrong = await wire.post(path, json={"query": "{ viewer { id } }"}, auth=("api", "b" * 40))
    missing = await wire.post(path, json={}, auth=None)

    assert (wrong.status_code, missing.status_code) == (401, 401)
    assert wrong.json()["errors"][0]["message"] == "invalid API key: permission denied"
    assert missing.json()["errors"][0]["message"] == "user is not logged in"


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
async def test_the_key_is_taken_as_basic_password_or_bearer_token(wire, scheme):
    credentials = httpx.BasicAuth("api", API_KEY)._auth_header if scheme == "Basic" else f"Bearer {API_KEY}"
    async with httpx.AsyncClient(base_url=wire.base_url, timeout=HANG_SECONDS) as client:
        answer = await client.post(
            "/graphql", json={"query": "{viewer{entity}}"}, headers={"Authorization": credentials}
        )
    assert answer.json() == {"data": {"viewer": {"entity": "team"}}}


async def test_a_field_that_is_not_there_is_refused_with_400(wire):
    answer = await wire.post("/graphql", json={"query": "mutation { launchRockets(input: {}) { success } }"})
    assert answer.status_code == 400
    assert 'Cannot query field "launchRockets" on type "Mutation"' in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"query": 1}',
        b'{"query": ["{viewer{id}}"]}',
        b'{"query": "{viewer{id}"}',
        b'{"query": "{viewer{id}}", "variables": "x"}',
        b'{"query": "query($n: String!){entity(name: $n){id}}", "variables": {"n": {"a": 1}}}',
        b"[" * 100_000,
    ],
    ids=lambda body: body[:45].decode(),
)
async def test_a_malformed_request_is_refused_with_400(wire, body):
    answer = await wire.post("/graphql", content=body)
    assert answer.status_code == 400
    assert answer.json()["errors"]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"files": 1}', b'{"files": {"wandb-summary.json": {"content": ["{"]}}}']
)
async def test_a_malformed_stream_is_refused_with_400(wire, body):
    assert (await wire.post("/files/team/p/broken/file_stream", content=body)).status_code == 400


async def test_one_request_asks_for_many_runs_under_aliases(wire, wandb_sandbox):
    for name in ("going", "stopping"):
        run, _ = wandb_sandbox.backend.runs.upsert("team", "aliases", {"name": name})
        wandb_sandbox.backend.ensure_project("team", "aliases")
        if name == "stopping":
            wandb_sandbox.backend.runs.stop(run)

    data = await graphql(
        wire,
        "query Stopped($p: String, $e: String, $r0: String!) {"
        " r0: project(name: $p, entityName: $e) { run(name: $r0) { stopped } }"
        ' r1: project(name: "aliases", entityName: "team") { run(name: "stopping") { halted: stopped ...F } }'
        ' r2: project(name: "aliases", entityName: "team") { run(name: "unknown") { stopped } }'
        ' r3: project(name: "unknown", entityName: "team") { run(name: "going") { stopped } } }'
        " fragment F on Run { state }",
        p="aliases",
        e="team",
        r0="going",
    )

    assert data == {
        "r0": {"run": {"stopped": False}},
        "r1": {"run": {"halted": True, "state": "running"}},
        "r2": {"run": None},
        "r3": None,
    }


async def test_what_is_not_there_reads_as_null_and_is_refused_when_written_to(wire, wandb_sandbox):
    make_queue(wandb_sandbox, "present")
    data = await graphql(
        wire,
        '{ queue: project(name: "model-registry", entityName: "team") { runQueue(name: "absent") { id } }'
        ' item: project(name: "model-registry", entityName: "team")'
        ' { runQueue(name: "present") { runQueueItem(id: "absent") { id } } }'
        ' agent: launchAgent(id: "absent") { id } stranger: entity(name: "absent") { id } }',
    )
    assert data == {
        "queue": {"runQueue": None},
        "item": {"runQueue": {"runQueueItem": None}},
        "agent": None,
        "stranger": None,
    }

    for mutation, http_status in {
        'ackRunQueueItem(input: {runQueueItemId: "absent", runName: "r"})': 404,
        'failRunQueueItem(input: {runQueueItemId: "absent", message: "m", stage: "s"})': 404,
        'updateLaunchAgent(input: {launchAgentId: "absent"})': 404,
        'stopRun(input: {id: "absent"})': 404,
        'pushToRunQueue(input: {queueID: "absent", runSpec: "{}"})': 400,
        'deleteRunQueues(input: {queueIDs: ["absent"]})': 400,
    }.items():
        answer = await wire.post("/graphql", json={"query": f"mutation {{ {mutation} {{ __typename }} }}"})
        assert answer.status_code == http_status, mutation


async def test_a_second_ack_is_answered_with_409(wire, wandb_sandbox):
    make_queue(wandb_sandbox, "conflict")
    item_id = wandb_sandbox.backend.push_raw("conflict", "{}")
    await graphql(wire, _POP, entity="team", project="model-registry", queueName="conflict")
    ack = {
        "query": "mutation A($i: ID!, $r: String!)"
        " { ackRunQueueItem(input: {runQueueItemId: $i, runName: $r}) { success } }",
        "variables": {"i": item_id, "r": "run1"},
    }

    first, second = await wire.post("/graphql", json=ack), await wire.post("/graphql", json=ack)

    assert (first.status_code, second.status_code) == (200, 409)
    assert second.json()["errors"][0]["message"] == "item already claimed or not eligible to be claimed"


async def test_a_priority_without_a_priority_queue_is_answered_with_400(wire, wandb_sandbox):
    make_queue(wandb_sandbox, "flat")
    query = (
        'mutation { pushToRunQueueByName(input: {entityName: "team", projectName: "model-registry",'
        ' queueName: "flat", runSpec: "{}", priority: 1}) { runQueueItemId } }'
    )
    answer = await wire.post("/graphql", json={"query": query})
    assert (answer.status_code, answer.json()["errors"][0]["message"]) == (
        400,
        "run queue flat does not support priorities",
    )


async def test_an_item_reads_with_its_state_its_run_and_its_notices(wire, wandb_sandbox):
    make_queue(wandb_sandbox, "read")
    items = wandb_sandbox.backend.items
    item_id = wandb_sandbox.backend.push_raw("read", '{"name": "n"}')
    await graphql(wire, _POP, entity="team", project="model-registry", queueName="read")
    items.acknowledge(item_id, "run1")
    items.warn(item_id, "slow", "build", None)
    items.fail(item_id, "broken", "agent", ["x/error.log"])

    data = await graphql(
        wire,
        'query I($i: ID!) { project(name: "model-registry", entityName: "team") { runQueue(name: "read") {'
        " runQueueItem(id: $i) { id state associatedRunId runSpec priority"
        " error { message stage filePaths } warning { message stage } }"
        " runQueueItems(first: 1) { edges { node { id } } pageInfo { hasNextPage } } } } }",
        i=item_id,
    )

    queue = data["project"]["runQueue"]
    assert queue["runQueueItem"] == {
        "id": item_id,
        "state": "FAILED",
        "associatedRunId": "run1",
        "runSpec": {"name": "n"},
        "priority": None,
        "error": {"message": "broken", "stage": "agent", "filePaths": ["x/error.log"]},
        "warning": {"message": "slow", "stage": "build"},
    }
    assert queue["runQueueItems"] == {
        "edges": [{"node": {"id": item_id}}],
        "pageInfo": {"hasNextPage": False},
    }


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        '"a string"',
        "null",
        "{not json",
        '{"big": "' + "x" * 1_000_000 + '"}',
        '{"deep": ' * 10_000 + "1" + "}" * 10_000,
        "[" * 10_000 + "]" * 10_000,
    ],
    ids=["list", "string", "null", "no JSON", "1 MB", "10,000 objects deep", "10,000 lists deep"],
)
async def test_an_odd_run_spec_is_stored_and_popped_exactly_as_it_is(wire, wandb_sandbox, text):
    name = f"odd-{abs(hash(text))}"
    make_queue(wandb_sandbox, name)
    item_id = wandb_sandbox.backend.push_raw(name, text)

    answer = await wire.post(
        "/graphql",
        json={"query": _POP, "variables": {"entity": "team", "project": "model-registry", "queueName": name}},
    )

    whole = f'{{"data": {{"popFromRunQueue": {{"runQueueItemId": "{item_id}", "runSpec": {text}}}}}}}'
    assert (answer.status_code, answer.text) == (200, whole)
    assert wandb_sandbox.backend.item(item_id).state == "LEASED"


@pytest.mark.parametrize("run_spec", ["{", "[]", '"x"', "[" * 100_000], ids=lambda text: text[:5])
async def test_a_pushed_run_spec_that_is_no_object_is_refused_with_400(wire, wandb_sandbox, run_spec):
    name = f"push-{abs(hash(run_spec))}"
    make_queue(wandb_sandbox, name)
    query = (
        'mutation P($q: String!, $s: JSONString!) { pushToRunQueueByName(input: {entityName: "team",'
        ' projectName: "model-registry", queueName: $q, runSpec: $s}) { runQueueItemId } }'
    )
    answer = await wire.post("/graphql", json={"query": query, "variables": {"q": name, "s": run_spec}})
    assert answer.status_code == 400
    assert wandb_sandbox.backend.items.of_queue(wandb_sandbox.backend.queue(name)) == []


async def test_the_reference_requests_are_answered_without_variables_and_operation_names(wire):
    for body in (
        {"query": "query Viewer { viewer { id } }", "operationName": "Viewer"},
        {"query": "#graphql\nquery Q { serverInfo { features { name } } }", "operationName": ""},
        {
            "query": "query A { viewer { id } } query B { serverInfo { features { name } } }",
            "operationName": "B",
        },
    ):
        answer = await wire.post("/graphql", content=json.dumps(body))
        assert answer.status_code == 200, answer.text
