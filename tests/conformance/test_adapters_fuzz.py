"""Whatever W&B and Vertex AI answer our adapters is borne; `make fuzz` tries more of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import httpx
import pytest
from edge_fuzz import anything, dumped, fuzz
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from queue_client import mocked
from served_vertex import job

from tests.unit.json_fuzz import mutated
from vertex_launch.errors import LaunchError
from vertex_launch.lifecycle import JobRecord
from vertex_launch.vertex_jobs import as_record
from vertex_launch.vertex_types import CustomJob
from vertex_launch.wandb_queue import AgentStatus, RunPath, WandbQueue

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
    "stop_run": lambda queue: queue.stop_run(RUN),
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
            for name in ("updateLaunchAgent", "ackRunQueueItem", "failRunQueueItem", "stopRun",
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


@fuzz(300)
@given(seed=st.integers(0, 2**32))
async def test_any_job_of_vertex_ai_is_borne(seed: int):
    random = Random(seed)
    raw = CustomJob.pb(job(labels={"a": "b"}))
    raw.state = random.choice([0, 3, 42, 2**31 - 1, -1])
    for name in ("create_time", "start_time", "end_time", "update_time"):
        if random.random() < 0.5:
            moment = getattr(raw, name)
            moment.seconds = random.choice([0, 1, -1, 2**63 - 1, -(2**63), 253402300800, -62135596801])
            moment.nanos = random.choice([0, -1, 999_999_999, 2**31 - 1])
    raw.error.code, raw.error.message = random.choice([0, 8, -5]), "\N{GRINNING FACE}" * random.randrange(9)
    content = bytearray(raw.SerializeToString())
    for _ in range(random.randrange(3)):
        content[random.randrange(len(content))] = random.randrange(256)
    try:
        received = type(raw).FromString(bytes(content))
    except DecodeError:
        return
    record = as_record(received)
    assert isinstance(record, JobRecord)
    assert record.launch_state is not None
    assert isinstance(record.is_terminal, bool)
