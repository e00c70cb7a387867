"""Whatever W&B and Vertex AI answer our adapters is borne; `make fuzz` tries more of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from prefect_vertex_launch.core.errors import LaunchError
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.core.vertex_types import CustomJob, ListCustomJobsResponse
from prefect_vertex_launch.vertex.job_record import as_record
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import AgentStatus, RunPath, WandbQueue
from tests.adapters.queue_client import NoWait, mocked
from tests.edge_fuzz import anything, dumped, fuzz
from tests.json_fuzz import mutated
from tests.sandbox.served_vertex import job

pytestmark = pytest.mark.asyncio(loop_scope="module")
RUN = RunPath("team", "p", "run-1")
CALLS: dict[str, Callable[[WandbQueue], Awaitable[Any]]] = {
    "find_queue": lambda queue: queue.find_queue(),
    "register": lambda queue: queue.register({}, ["UnVuUXVldWU6MQ=="]),
    "read_agent": lambda queue: queue.read_agent("a"),
    "heartbeat": lambda queue: queue.heartbeat("a", AgentStatus.POLLING),
    "open_agent_run": lambda queue: queue.open_agent_run("agent"),
    "upload_agent_file": lambda queue: queue.upload_agent_file("agent", "a/b", "text"),
    "close_agent_run": lambda queue: queue.close_agent_run("agent"),
    "pop": lambda queue: queue.pop(None),
    "acknowledge": lambda queue: queue.acknowledge("item", "run-1"),
    "fail": lambda queue: queue.fail("item", "half a character: \ud800", "run", ["a"]),
    "warn": lambda queue: queue.warn("item", "message", "run"),
    "read_item": lambda queue: queue.read_item("item"),
    "read_runs": lambda queue: queue.read_runs([RUN]),
    "read_run_state": lambda queue: queue.read_run_state("team", "p", "run-1"),
    "read_sweep_state": lambda queue: queue.read_sweep_state("team", "p", "s"),
    "cancel_sweep": lambda queue: queue.cancel_sweep("team", "p", "s"),
    "read_job": lambda queue: queue.read_job("team", "p", "job:latest"),
}
FILES = {
    "pageInfo": {"endCursor": "c", "hasNextPage": False},
    "edges": [{"node": {"name": "wandb-job.json", "directUrl": "https://wandb.test/wandb-job.json"}}],
}
# Every field that any of the operations asks for, so that each finds its own in one answer.
GOOD: dict[str, Any] = {
    "data": {
        "project": {
            "runQueue": {
                "id": "q", "defaultResourceConfigID": "c", "prioritizationMode": "V0", "externalLinks": {},
                "runQueueItem": {"id": "item", "state": "CLAIMED", "associatedRunId": "run-1"},
            },
            "runQueues": [{"id": "q", "name": "vertex"}],
            "run": {"state": "running", "stopped": False},
            "sweep": {"id": "s", "name": "s", "state": "RUNNING"},
            "artifactCollection": {"artifactMembership": {"artifact": {"id": "a"}, "files": FILES}},
        },
        "run0": {"run": {"state": "running", "stopped": True}},
        "entity": {"defaultResourceConfig": {"config": {}, "resource": "gcp-vertex"}},
        "createLaunchAgent": {"launchAgentId": "a"},
        "launchAgent": {"id": "a", "name": "agent", "agentStatus": "POLLING", "stopPolling": False},
        "popFromRunQueue": {"runQueueItemId": "item", "runSpec": '{"entity": "team", "_wandb_api_key": "k"}'},
        "upsertBucket": {"bucket": {"id": "b", "name": "agent"}},
        "createRunFiles": {
            "uploadHeaders": ["A: b"], "files": [{"name": "a/b", "uploadUrl": "https://wandb.test/up"}],
        },
        "upsertSweep": {"sweep": {"name": "s"}},
        **{
            name: {"success": True}
            for name in ("updateLaunchAgent", "ackRunQueueItem", "failRunQueueItem",
                         "updateRunQueueItemWarning")
        },
    }
}  # fmt: skip
JOBS = st.just({
    "source_type": "image", "source": {"image": "i", "entrypoint": ["python"], "notebook": False,
    "git": {"remote": "r", "commit": "c"}, "artifact": "wandb-artifact://_id/abc", "base_image": "b"},
})  # fmt: skip
URLS = st.sampled_from(
    ["http://[", "//", "ftp://a/b", "https://wandb.test:99999/", "\x00", "http://a b", "x" * 70_000]
)
ANSWERS = (
    mutated(st.just(GOOD), anything | URLS)
    | st.sampled_from(
        [{"data": None}, {"errors": {}}, {"errors": [None]}, {"errors": [{"message": 5}]}, [], None]
    )
    | anything
)
RAW = st.sampled_from([
    b"", b"\xff", b"{", b'{"data": {"popFromRunQueue": {"runQueueItemId": "i", "runSpec": {"a',
    b'{"runQueueItemId": "\\ud800", ', b'{"runQueueItemId": "\\x", ', b'{"runQueueItemId": "a\nb", ',
])  # fmt: skip
STATUSES = st.sampled_from([200] * 12 + [204, 302, 400, 401, 403, 404, 409, 418, 429, 500, 503])
RETRY_AFTER = st.sampled_from([
    "", "1", "0", "99999999999999999999999", "²", "-1", "soon", "9" * 5000, "Wed, 21 Oct 2015 07:28:00 GMT",
    "Wed, 21 Oct 99999 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 +9999", "\xff",
])  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@fuzz(40)
@given(
    answer=ANSWERS.map(dumped) | RAW,
    job_file=mutated(JOBS, anything).map(dumped) | RAW,
    status=STATUSES,
    retry_after=RETRY_AFTER,
)
async def test_any_answer_of_wandb_is_borne(
    call: str, answer: bytes, job_file: bytes, status: int, retry_after: str
):
    def respond(request: httpx.Request) -> httpx.Response:
        content = job_file if request.url.path == "/wandb-job.json" else answer
        return httpx.Response(
            status, content=content, headers=[(b"Retry-After", retry_after.encode("latin-1"))]
        )

    message = "none"
    async with mocked(respond) as queue:
        try:
            await CALLS[call](queue)
        except LaunchError as error:
            message = str(error)
    assert message


JOB_NAME = "projects/1234/locations/us-central1/customJobs/1"
JOB_CALLS: dict[str, Callable[[VertexJobs], Awaitable[Any]]] = {
    "create": lambda jobs: jobs.create(job()),
    "get": lambda jobs: jobs.get(JOB_NAME),
    "describe": lambda jobs: jobs.describe(JOB_NAME),
    "list": lambda jobs: jobs.list('labels.a="b"'),
    "cancel": lambda jobs: jobs.cancel(JOB_NAME),
}
STATUS_DETAILS = "grpc-status-details-bin"
# Protobuf allows ten thousand years.
PAUSES = [0, 1, -1, 2**31, 315_576_000_000, -315_576_000_000]


class RawVertex(grpc.GenericRpcHandler):
    """A job service that answers any call with the next of `answers`, as it is: bytes, or an error."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[bytes | tuple[grpc.StatusCode, str, bytes | None]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _request: bytes, context: Any) -> bytes:
        answer = self.answers.pop(0) if self.answers else b""
        if isinstance(answer, bytes):
            return answer
        code, message, details = answer
        await context.abort(code, message, () if details is None else ((STATUS_DETAILS, details),))
        raise AssertionError("aborted")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def raw_vertex() -> AsyncIterator[RawVertex]:
    vertex, server = RawVertex(), grpc.aio.server()
    server.add_generic_rpc_handlers((vertex,))
    vertex.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield vertex
    await server.stop(grace=0)


async def borne(vertex: RawVertex, call: str) -> Any:
    """Return what a call makes of the answers: a value, or an error of ours, which has a message."""
    clock = NoWait()
    jobs = VertexJobs(
        project="p", location="us-central1", endpoint=vertex.url, clock=clock, random=Random(1),
        calls_per_minute=10**6, submissions_per_minute=10**6,
    )  # fmt: skip
    try:
        return await JOB_CALLS[call](jobs)
    except LaunchError as error:
        return str(error) or error
    finally:
        await jobs.aclose()


def damaged(content: bytes, random: Random) -> bytes:
    """Return a message with up to two bytes changed, or cut off."""
    changed = bytearray(content)
    for _ in range(random.randrange(3)):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed[: random.randrange(len(changed) + 1)] if random.random() < 0.2 else changed)


@pytest.mark.parametrize("call", ["get", "describe", "create", "cancel"])
@fuzz(60)
@given(seed=st.integers(0, 2**32))
async def test_any_answer_of_vertex_ai_is_borne(raw_vertex: RawVertex, call: str, seed: int):
    random = Random(seed)
    raw_vertex.answers = [
        damaged(CustomJob.pb(any_job(random)).SerializeToString(), random) for _ in range(5)
    ]
    assert isinstance(await borne(raw_vertex, call), JobRecord | CustomJob | str | None)


@fuzz(100)
@given(seed=st.integers(0, 2**32))
async def test_any_page_of_vertex_ais_list_is_borne(raw_vertex: RawVertex, seed: int):
    random = Random(seed)
    tokens = ["", "a", "b", "\N{GRINNING FACE}", "x" * 5000]
    raw_vertex.answers = [
        damaged(
            ListCustomJobsResponse.pb(
                ListCustomJobsResponse(
                    custom_jobs=[any_job(random) for _ in range(random.randrange(4))],
                    next_page_token=random.choice(tokens),
                )
            ).SerializeToString(),
            random,
        )
        for _ in range(random.randrange(1, 6))
    ]
    found = await borne(raw_vertex, "list")
    assert isinstance(found, str) or all(isinstance(record, JobRecord) for record in found)


async def test_pages_that_lead_back_to_one_before_end_the_list(raw_vertex: RawVertex):
    raw_vertex.answers = [
        ListCustomJobsResponse.pb(ListCustomJobsResponse(next_page_token=token)).SerializeToString()
        for token in "abab"
    ]
    assert "does not go on" in await borne(raw_vertex, "list")
    assert len(raw_vertex.answers) == 1


@pytest.mark.parametrize("call", JOB_CALLS)
@fuzz(60)
@given(seed=st.integers(0, 2**32))
async def test_any_error_of_vertex_ai_is_borne(raw_vertex: RawVertex, call: str, seed: int):
    random = Random(seed)
    raw_vertex.answers = [any_error(random) for _ in range(5)]
    # A cancel that comes too late is refused, and fine.
    assert isinstance(await borne(raw_vertex, call), str | None if call == "cancel" else str)


@pytest.mark.parametrize("call", JOB_CALLS)
@pytest.mark.parametrize(
    "details",
    [b"\xff", Status(code=0).SerializeToString(), Status(code=-5).SerializeToString()],
    ids=["no message", "another code", "no code"],
)
async def test_details_of_an_error_that_cannot_be_read_are_borne(
    raw_vertex: RawVertex, call: str, details: bytes
):
    raw_vertex.answers = [(grpc.StatusCode.UNAVAILABLE, "away", details)] * 5
    assert isinstance(await borne(raw_vertex, call), str)


@pytest.mark.parametrize("call", ["get", "describe", "list", "cancel"])
async def test_a_pause_of_longer_than_there_is_time_is_borne(raw_vertex: RawVertex, call: str):
    pause = packed_pause(seconds=2**63 - 1)
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="away", details=[pause])
    details = status.SerializeToString()
    raw_vertex.answers = [(grpc.StatusCode.UNAVAILABLE, "away", details)] * 5
    assert isinstance(await borne(raw_vertex, call), str)


def any_error(random: Random) -> tuple[grpc.StatusCode, str, bytes | None]:
    """Return an error with details that are right, odd, of an unknown type, or none at all."""
    code = random.choice([code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
    messages = ["", "quota", "x" * 2000, "\N{GRINNING FACE}", "%", "a\nb", "job_spec.a: ", ": :", "field `a"]
    message = random.choice(messages)
    wrong, unknown = PackedMessage(), PackedMessage()
    wrong.Pack(BadRequest(field_violations=[BadRequest.FieldViolation(field="a.b", description="c")]))
    unknown.type_url, unknown.value = random.choice(["", "type.googleapis.com/a.B", "%"]), b"\xff\xff"
    pause = packed_pause(seconds=random.choice(PAUSES), nanos=random.choice([0, -1, 999_999_999]))
    details = random.sample([pause, wrong, unknown], random.randrange(4))
    status = Status(code=code.value[0], message=message, details=details)
    return code, message, random.choice([None, status.SerializeToString()])


def packed_pause(*, seconds: int, nanos: int = 0) -> PackedMessage:
    packed, retry = PackedMessage(), RetryInfo()
    retry.retry_delay.seconds, retry.retry_delay.nanos = seconds, nanos
    packed.Pack(retry)
    return packed


@fuzz(300)
@given(seed=st.integers(0, 2**32))
async def test_any_job_of_vertex_ai_is_borne(seed: int):
    random = Random(seed)
    content = damaged(CustomJob.pb(any_job(random)).SerializeToString(), random)
    try:
        received = type(CustomJob.pb(CustomJob())).FromString(content)
    except DecodeError:
        return
    record = as_record(received)
    assert isinstance(record, JobRecord)
    assert record.launch_state is not None
    assert isinstance(record.is_terminal, bool)


def any_job(random: Random) -> CustomJob:
    """Return a job with a state, times and an error that may be none."""
    custom_job = job(labels={"a": "b"})
    custom_job.name = random.choice([JOB_NAME, JOB_NAME, "", "customJobs/1", "\N{GRINNING FACE}"])
    raw = CustomJob.pb(custom_job)
    raw.state = random.choice([0, 3, 42, 2**31 - 1, -1])
    for name in ("create_time", "start_time", "end_time", "update_time"):
        if random.random() < 0.5:
            moment = getattr(raw, name)
            moment.seconds = random.choice([0, 1, -1, 2**63 - 1, -(2**63), 253402300800, -62135596801])
            moment.nanos = random.choice([0, -1, 999_999_999, 2**31 - 1])
    raw.error.code, raw.error.message = random.choice([0, 8, -5]), "\N{GRINNING FACE}" * random.randrange(9)
    return custom_job
