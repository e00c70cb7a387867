"""Whatever is sent to the servers of the sandbox is answered; `make fuzz` tries more of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc.aio
import httpx
import pytest
import pytest_asyncio
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    build_schema,
    get_named_type,
)
from hypothesis import given
from hypothesis import strategies as st

from prefect_vertex_launch.core.vertex_types import (
    CancelCustomJobRequest,
    CreateCustomJobRequest,
    CustomJob,
    DeleteCustomJobRequest,
    GetCustomJobRequest,
    ListCustomJobsRequest,
)
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.sandbox.wandb.graphql import execution
from tests.adapters.queue_client import CONFIG
from tests.edge_fuzz import anything, dumped, fuzz
from tests.eventually import HANG_SECONDS
from tests.json_fuzz import mutated
from tests.sandbox.served_vertex import PARENT, job
from tests.sandbox_access import KnownEverywhere, token_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

BIG: dict[str, bytes] = {
    "long text": b"x" * 3_000_000,
    "deep object": b'{"a":' * 50_000,
    "deep list": b"[" * 50_000,
    "deep document": b'{"query": "' + b"{a" * 5_000 + b'"}',
    "wide document": b'{"query": "{' + b" a: viewer { id } " * 500 + b'}"}',
}
SCHEMA = build_schema(Path(execution.__file__).with_name("schema.graphql").read_text(encoding="utf-8"))
RUN_ID = "UnVuOnYxOnJ1bi0xOnA6dGVhbQ=="
KNOWN = st.sampled_from([
    "team", "model-registry", "vertex", "p", "run-1", "other", "UnVuUXVldWU6MQ==", "UnVuUXVldWVJdGVtOjE=",
    "TGF1bmNoQWdlbnQ6MQ==", "RGVmYXVsdFJlc291cmNlQ29uZmlnOjE=", RUN_ID, "c-1", "job", "job:latest", "latest",
    "QXJ0aWZhY3Q6MQ==", "files", "1", "-1", "running", "pending", "FAILED", "", "²",
])  # fmt: skip
JSON_TEXTS = st.sampled_from([
    "{}", "null", "[]", "1", "{", '{"a": NaN}', '{"a": 1e999}', '"\\ud800"',  '{"keys": ["a"]}',
    '{"keys": 1}', '{"minStep": "x"}', '{"samples": -1}', '{"keys": ["loss", 1, null], "maxStep": 1e300}',
    '{"resource_args": {"gcp-vertex": 1}}', '{"resource_args": {}}', '{"v": {"schema": {"type": "integer"}}}',
    '{"v": {"schema": {"type": "string", "enum": 5, "default": []}}}', '{"v": {"schema": {"type": [1]}}}',
    '{"v": {"schema": {"type": "number", "minimum": "a", "default": 1}}}', '{"v": 1}', '{"v": {"schema": 1}}',
    '{"_wandb": 1}', '{"_wandb": {"value": 1}}', '{"entity": "team", "project": "p", "author": []}',
    '{"storagePolicyConfig": 1, "contents": {"a": 1}}', '{"contents": {"a": {"digest": 1, "size": "x"}}}',
]) | st.sampled_from([90, 100, 101, 900, *range(920, 950), 990]).map(
    lambda levels: '{"a":' + "[" * levels + "]" * levels + "}"
)  # fmt: skip
TEXTS = KNOWN | JSON_TEXTS | st.text(max_size=8)
BODIES = (
    st.binary(max_size=40)
    | anything.map(dumped)
    | JSON_TEXTS.map(str.encode)
    | st.sampled_from([b"\xff\xfe{}", b"\x00"])
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(entity="team", is_manual=True, faults_port=0, secrets={SECRET: "x"}) as running:
        fill(running)
        yield running


SECRET = "projects/p/secrets/s/versions/1"


def fill(sandbox: Sandbox) -> None:
    """Put one of each thing there, so that what is sent finds something."""
    wandb = sandbox.wandb
    config = wandb.queues.create_config("team", "gcp-vertex", json.dumps(CONFIG), None)
    wandb.queues.create("team", "model-registry", "vertex", created_by="ann", resource_config_id=config.id)
    wandb.ensure_project("team", "p")
    wandb.runs.upsert("team", "p", {"name": "run-1"})
    wandb.push_raw("vertex", '{"entity": "team"}')
    wandb.agents.register([], "host", config=None, version=None)


# --- GraphQL


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Draw a value for an argument: mostly of its type, and now and then anything."""
    if isinstance(kind, GraphQLNonNull):
        return values_of(kind.of_type)
    if isinstance(kind, GraphQLList):
        return st.lists(values_of(kind.of_type), max_size=3)
    if isinstance(kind, GraphQLEnumType):
        return st.sampled_from(sorted(kind.values))
    if isinstance(kind, GraphQLInputObjectType):
        fields = kind.fields
        needed = {
            name: values_of(field.type)
            for name, field in fields.items()
            if field.type.__class__ is GraphQLNonNull
        }
        optional = {
            name: st.none() | values_of(field.type) for name, field in fields.items() if name not in needed
        }
        return st.fixed_dictionaries(needed, optional=optional)
    return {
        "Int": st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 3),
        "Int64": st.integers() | TEXTS,
        "Boolean": st.booleans(),
        "Float": st.floats(),
        "JSON": anything,
    }.get(kind.name, TEXTS)


@st.composite
def operations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a document that mostly fits the schema, with variables that mostly fit the document."""
    declared: list[str] = []
    variables: dict[str, Any] = {}

    def field(name: str, definition: GraphQLField, depth: int) -> str:
        arguments: list[str] = []
        for argument, of in definition.args.items():
            if not isinstance(of.type, GraphQLNonNull) and draw(st.integers(0, 2)) == 0:
                continue
            variable = f"v{len(declared)}"
            declared.append(f"${variable}: {of.type}")
            variables[variable] = draw(values_of(of.type))
            arguments.append(f"{argument}: ${variable}")
        text = f"{name}({', '.join(arguments)})" if arguments else name
        kind = get_named_type(definition.type)
        return f"{text} {selection(kind, depth)}" if isinstance(kind, GraphQLObjectType) else text

    def selection(kind: GraphQLObjectType, depth: int) -> str:
        deep = [
            name for name, of in kind.fields.items() if isinstance(get_named_type(of.type), GraphQLObjectType)
        ]
        flat = [name for name in kind.fields if name not in deep] or ["__typename"]
        chosen = set(draw(st.lists(st.sampled_from(flat), min_size=1, max_size=6)))
        if deep and depth:
            chosen |= set(draw(st.lists(st.sampled_from(deep), min_size=1, max_size=2)))
        parts = [
            field(name, kind.fields[name], depth - 1) if name in kind.fields else name
            for name in sorted(chosen)
        ]
        return f"{{ {' '.join(parts)} }}"

    root = draw(st.sampled_from(["query", "mutation", "mutation"]))
    kind = SCHEMA.query_type if root == "query" else SCHEMA.mutation_type
    assert kind is not None
    name = draw(st.sampled_from(sorted(kind.fields)))
    body = field(name, kind.fields[name], 4)
    head = f"{root} It" + (f"({', '.join(declared)})" if declared else "")
    if variables and draw(st.integers(0, 5)) == 0:
        variables[draw(st.sampled_from(sorted(variables)))] = draw(anything)
    return {"query": f"{head} {{ {body} }}", "variables": variables, "operationName": "It"}


@fuzz(350)
@given(request=operations())
async def test_any_operation_has_an_answer(sandbox: Sandbox, request: dict[str, Any]):
    answer = execution.answer(sandbox.wandb, dumped(request))
    assert answer.http_status < 500, answer.body


ODD_DOCUMENTS = [
    "query($a: [[[[Int]]]]) { viewer { id } }",
    "{ ...F } fragment F on Query { ...F }",
    "subscription { viewer }",
    "{ __schema { types { name } } }",
    "query A { viewer { id } } query B { viewer { id } }",
]


@fuzz(150)
@given(
    body=BODIES
    | mutated(operations(), anything).map(dumped)
    | (st.text(max_size=20) | st.sampled_from(ODD_DOCUMENTS)).map(lambda query: dumped({"query": query}))
)
async def test_any_body_has_an_answer(sandbox: Sandbox, body: bytes):
    answer = execution.answer(sandbox.wandb, body)
    assert answer.http_status < 500, answer.body
    assert execution.operation_names(body) is not None


@pytest.mark.parametrize("name", BIG)
async def test_a_body_of_any_size_and_depth_has_an_answer(
    sandbox: Sandbox, http: httpx.AsyncClient, name: str
):
    for url in (
        f"{sandbox.wandb_url}/graphql",
        f"{sandbox.wandb_url}/files/team/p/run-1/file_stream",
        f"{sandbox.vertex_rest_url}/v1/{PARENT}/customJobs",
        sandbox.faults_url,
    ):
        answer = await http.post(url, content=BIG[name], auth=KnownEverywhere(sandbox))
        assert answer.status_code in {200, 400}, (url, answer.text[:200])


# --- HTTP

SEGMENTS = st.sampled_from([
    "graphql", "files", "team", "p", "run-1", "file_stream", "storage", "run", "a", "..", "artifactsV2",
    "gcs", "sdk", "otel", "v1", "metrics", "projects", "locations", "us-central1", "customJobs", "1:cancel",
    "4611686018427387905", "4611686018427387905:cancel", "computeMetadata", "instance", "service-accounts",
    "default", "token", "secrets", "s", "versions", "latest:access", "²:access", "faults", "%",
    "\ud83d\ude00", "", "1", "-1",
]) | st.text(max_size=6)  # fmt: skip
PATHS = st.lists(SEGMENTS, max_size=8).map("/".join) | st.sampled_from([
    "graphql", "files/team/p/run-1/file_stream", "files/other/p/run-1/file_stream",
    "storage/run/team/p/run-1/x",
    f"v1/{PARENT}/customJobs", f"v1/{PARENT}/customJobs/4611686018427387905", "sdk/otel/v1/traces",
    f"v1/{PARENT}/customJobs/4611686018427387905:cancel", "v1/projects/x y/locations/ü/customJobs",
    f"v1/{SECRET}:access", "computeMetadata/v1/instance/service-accounts/default/token", "faults", "faults/1",
    "artifactsV2/gcs/team/p/c-1/QXJ0aWZhY3Q6MQ==/abc/a.txt", "v1/projects/p/secrets/s/versions/latest:access",
])  # fmt: skip
HEADERS = st.sampled_from([
    {}, {"Authorization": "Basic !!"}, {"Authorization": "Basic \xff"}, {"Authorization": "Bearer"},
    {"Content-Type": "text/plain; charset=utf-7"}, {"Metadata-Flavor": "Google"},
    {"Authorization": "Basic YXBpOsO8"}, {"Content-Encoding": "gzip"},
])  # fmt: skip
STREAMS = st.fixed_dictionaries(
    {},
    optional={
        "files": st.dictionaries(
            st.sampled_from(
                ["wandb-history.jsonl", "wandb-summary.json", "output.log", "wandb-events.jsonl", "x"]
            ),
            st.fixed_dictionaries(
                {},
                optional={
                    "offset": st.integers(-3, 3) | st.integers(),
                    "content": st.lists(TEXTS, max_size=3),
                },
            ),
            max_size=3,
        ),
        "complete": st.none() | st.booleans(),
        "exitcode": st.none() | st.integers(),
    },
).map(dumped)
QUERIES = st.dictionaries(
    st.sampled_from(["filter", "pageSize", "pageToken", "readMask", "$alt", "x"]),
    TEXTS
    | st.sampled_from([
        'labels.a="b" AND NOT state="JOB_STATE_FAILED"', 'create_time>"2024-01-01T00:00:00Z"', "labels.a:*",
        'create_time>"9999-12-31T23:59:59Z"', 'state="x"', "(" * 60 + ")", 'display_name:"a*"', "labels:a OR",
        '"', "NOT " * 3000 + "labels:a", "name,state", "labels", "displayName", "*", "json;enum-encoding=int",
        "a.b.c", "jobSpec.workerPoolSpecs.containerSpec", "99999999999999999999", "2147483648",
    ]),
    max_size=4,
)  # fmt: skip


@fuzz(350)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"]),
    path=PATHS, body=BODIES | STREAMS, headers=HEADERS, query=QUERIES, is_known=st.booleans(),
    server=st.integers(0, 3),
)  # fmt: skip
async def test_any_request_has_an_answer(
    sandbox: Sandbox, http: httpx.AsyncClient, method: str, path: str, body: bytes, headers: dict[str, str],
    query: dict[str, str], is_known: bool, server: int,
):  # fmt: skip
    google = f"http://{sandbox.vertex.container_variables['GCE_METADATA_HOST']}"
    base = [sandbox.wandb_url, sandbox.vertex_rest_url, google, sandbox.faults_url.removesuffix("/faults")][
        server
    ]
    url = f"{base}/{quote(path.encode('utf-8', 'surrogatepass'), safe='/:%=')}"
    auth = KnownEverywhere(sandbox) if is_known else None
    query = {name: value[:2000] for name, value in query.items()}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = await http.request(
        method, url, content=body, headers=encoded, params=clean(query), **({"auth": auth} if auth else {})
    )
    assert answer.status_code < 500, (method, url, answer.text)
    await sandbox.faults.clear()


def clean(query: dict[str, str]) -> dict[str, str]:
    return {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        yield client


@fuzz(150)
@given(body=STREAMS)
async def test_any_stream_can_be_read_again(sandbox: Sandbox, http: httpx.AsyncClient, body: bytes):
    url = f"{sandbox.wandb_url}/files/team/p/run-1/file_stream"
    answer = await http.post(url, content=body, auth=("api", sandbox.api_key))
    assert answer.status_code < 500, answer.text
    query = (
        '{ project(name: "p", entityName: "team") { run(name: "run-1") { state config summaryMetrics'
        " historyKeys history(samples: 2) events(samples: 2) historyTail eventsTail"
        ' sampledHistory(specs: ["{\\"keys\\": [\\"_step\\"]}"]) parquetHistory(liveKeys: ["_step"])'
        " { liveData parquetUrls } } } }"
    )
    again = execution.answer(sandbox.wandb, json.dumps({"query": query}).encode())
    assert again.http_status == 200, again.body


# --- gRPC

REQUESTS = {
    "CreateCustomJob": CreateCustomJobRequest, "GetCustomJob": GetCustomJobRequest,
    "ListCustomJobs": ListCustomJobsRequest, "CancelCustomJob": CancelCustomJobRequest,
    "DeleteCustomJob": DeleteCustomJobRequest,
}  # fmt: skip
NAMES = st.sampled_from(
    ["", PARENT, f"{PARENT}/customJobs/4611686018427387905", "projects//locations/", "x" * 9999, "²"]
)
UNEXPECTED = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}


@st.composite
def messages(draw: st.DrawFn, method: str) -> bytes:
    request = REQUESTS[method].pb()()
    for name in ("parent", "name"):
        if hasattr(request, name):
            setattr(request, name, draw(NAMES))
    if method == "ListCustomJobs":
        query = draw(QUERIES)
        request.filter = clean(query).get("filter", "")
        request.page_token = clean(query).get("pageToken", "")
        request.page_size = draw(st.integers(-(2**31), 2**31 - 1))
        request.read_mask.paths.extend(
            draw(st.lists(st.sampled_from(["name", "labels", "a..b", "", "*", "job_spec"])))
        )
    if method == "CreateCustomJob":
        request.custom_job.CopyFrom(CustomJob.pb(job(name="x" * draw(st.integers(0, 130)))))
        request.custom_job.job_spec.scheduling.timeout.seconds = draw(st.integers(-(2**63), 2**63 - 1))
        request.custom_job.create_time.seconds = draw(st.integers(-(2**63), 2**63 - 1))
        request.custom_job.job_spec.worker_pool_specs[0].replica_count = draw(
            st.integers(-(2**63), 2**63 - 1)
        )
    content = bytearray(request.SerializeToString())
    for _ in range(draw(st.integers(0, 3))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@fuzz(300)
@given(data=st.data(), method=st.sampled_from(sorted(REQUESTS)))
async def test_any_message_has_an_answer(
    sandbox: Sandbox, channel: grpc.aio.Channel, data: st.DataObject, method: str
):
    content = data.draw(messages(method) | st.binary(max_size=60))
    call = channel.unary_unary(f"/google.cloud.aiplatform.v1.JobService/{method}")
    code = grpc.StatusCode.OK
    try:
        await call(content, timeout=HANG_SECONDS, metadata=token_header(sandbox))
    except grpc.aio.AioRpcError as error:
        code = error.code()
    assert code not in UNEXPECTED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(sandbox: Sandbox) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(sandbox.vertex_grpc_url.removeprefix("grpc://")) as opened:
        yield opened
