"""The job client over gRPC, where the server's answers are out of the ordinary."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from random import Random

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.auth.credentials import AnonymousCredentials

from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    Refused,
    Transient,
)
from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.core.vertex_types import CustomJob, JobState
from prefect_vertex_launch.vertex.jobs import VertexJobs
from tests.adapters.scripted_vertex import PARENT, ScriptedVertex, failing, hang, scripted_vertex
from tests.sandbox.real_wandb import MovableClock

Code = grpc.StatusCode


GET = """
import asyncio, sys
from google.oauth2.credentials import Credentials
from prefect_vertex_launch.vertex.jobs import VertexJobs

async def get(url, name):
    jobs = VertexJobs(
        project="p", location="us-central1", endpoint=url, credentials=Credentials(token="the-token")
    )
    job = await jobs.get(name)
    await jobs.aclose()
    print(job.name, job.launch_state)

asyncio.run(get(*sys.argv[1:]))
"""


def certificate_of_localhost() -> tuple[bytes, bytes]:
    """Return a key and its certificate for 127.0.0.1, which is a root of its own, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return (
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
        certificate.public_bytes(pem),
    )


class NoWait(MovableClock):
    """A clock on which sleeping moves the time and returns at once."""

    def monotonic(self) -> float:
        return self.ahead.total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


@pytest.fixture
async def vertex() -> AsyncIterator[ScriptedVertex]:
    async with scripted_vertex() as vertex:
        yield vertex


@pytest.fixture
async def jobs(vertex: ScriptedVertex) -> AsyncIterator[VertexJobs]:
    jobs = open_jobs(vertex.url)
    yield jobs
    await jobs.aclose()


def open_jobs(endpoint: str, **more) -> VertexJobs:
    return VertexJobs(
        project="p", location="us-central1", endpoint=endpoint, clock=NoWait(), random=Random(1), **more
    )


async def test_a_job_is_created_read_and_cancelled(jobs, vertex):
    created = await jobs.create(CustomJob(display_name="train"))
    assert (created.display_name, created.launch_state) == ("train", LaunchState.QUEUED)
    assert (await jobs.get(created.name)).name == created.name
    await jobs.cancel(created.name)
    assert jobs.calls == {"create": 1, "get": 1, "cancel": 1}
    assert vertex.requests[0].parent == jobs.parent == PARENT


async def test_a_record_holds_what_the_server_says(jobs, vertex):
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    name = vertex.add(
        7,
        JobState.JOB_STATE_FAILED,
        labels={"launch-item": "abc"},
        create_time=when,
        end_time=when,
        error={"code": 3, "message": "no"},
    )
    job = await jobs.get(name)
    assert (job.job_id, job.labels, job.create_time, job.end_time, job.start_time, job.update_time) == (
        "7",
        {"launch-item": "abc"},
        when,
        when,
        None,
        None,
    )
    assert (job.error_code, job.error_message, job.is_terminal) == (3, "no", True)


async def test_a_list_follows_its_pages_and_asks_for_few_fields(jobs, vertex):
    for number in range(250):
        vertex.add(number, JobState.JOB_STATE_RUNNING)
    assert len(await jobs.list('labels.launch-queue="q"')) == 250
    assert jobs.calls == {"list": 3}
    assert {request.page_size for request in vertex.requests} == {100}
    assert "job_spec" not in vertex.requests[0].read_mask.paths
    assert [request.page_token for request in vertex.requests] == ["", "100", "200"]


async def test_a_state_the_sdk_does_not_know_is_not_terminal(jobs, vertex):
    assert not (await jobs.get(vertex.add(1, 42))).is_terminal


@pytest.mark.parametrize(
    "code",
    [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED, Code.DATA_LOSS],
)
async def test_a_create_that_may_have_happened_is_of_unknown_outcome_and_sent_once(jobs, vertex, code):
    vertex.faults["CreateCustomJob"] = failing(code, "who knows")
    with pytest.raises(OutcomeUnknown, match="who knows"):
        await jobs.create(CustomJob(display_name="x"))
    assert vertex.calls == {"CreateCustomJob": 1}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.RESOURCE_EXHAUSTED, Transient),
        (Code.PERMISSION_DENIED, PermissionDenied),
        (Code.UNAUTHENTICATED, AuthenticationFailed),
        (Code.INVALID_ARGUMENT, Refused),
        (Code.FAILED_PRECONDITION, Refused),
        (Code.NOT_FOUND, NotFound),
        (Code.ALREADY_EXISTS, Refused),
    ],
)
async def test_a_create_that_certainly_did_not_happen_says_why(jobs, vertex, code, error):
    vertex.faults["CreateCustomJob"] = failing(code, "because")
    with pytest.raises(error, match="because"):
        await jobs.create(CustomJob(display_name="x"))
    assert vertex.calls == {"CreateCustomJob": 1}


async def test_every_field_error_of_the_server_becomes_a_problem(jobs, vertex):
    vertex.faults["CreateCustomJob"] = failing(
        Code.INVALID_ARGUMENT,
        "List of found errors:\t1.Field: display_name; Message: Required field is not set.\t"
        "2.Field: job_spec.worker_pool_specs[0].machine_spec.accelerator_type; Message: Both "
        "`accelerator_type` and `accelerator_count` should be specified or none.\t",
    )
    with pytest.raises(Refused) as caught:
        await jobs.create(CustomJob(display_name="x"))
    first, second = caught.value.problems
    assert first.where.endswith("display_name")
    assert first.what == "Required field is not set."
    assert second.where.endswith("job_spec.worker_pool_specs[0].machine_spec.accelerator_type")
    assert second.what == "Both `accelerator_type` and `accelerator_count` should be specified or none."


async def test_a_silent_server_does_not_hang_a_create(vertex):
    vertex.faults["CreateCustomJob"] = hang
    jobs = open_jobs(vertex.url, create_timeout_seconds=0.2)
    with pytest.raises(OutcomeUnknown):
        await jobs.create(CustomJob(display_name="x"))
    with pytest.raises(OutcomeUnknown):
        await jobs.create(CustomJob(display_name="x"), timeout_seconds=0.1)
    await jobs.aclose()


@pytest.mark.parametrize(
    "code", [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.RESOURCE_EXHAUSTED]
)
async def test_reads_and_cancels_are_tried_again(jobs, vertex, code):
    name = vertex.add(1, JobState.JOB_STATE_RUNNING)
    for method in ("GetCustomJob", "ListCustomJobs", "CancelCustomJob"):
        vertex.faults[method] = failing(code, "later", times=2)
    await jobs.get(name)
    await jobs.list("")
    await jobs.cancel(name)
    assert set(vertex.calls.values()) == {3}


async def test_a_silent_server_ends_a_read_as_transient(vertex):
    vertex.faults["GetCustomJob"] = hang
    jobs = open_jobs(vertex.url, timeout_seconds=0.1)
    with pytest.raises(Transient):
        await jobs.get("x")
    await jobs.aclose()


async def test_what_is_not_there_is_not_found_at_once(jobs, vertex):
    for call in (jobs.get, jobs.cancel):
        with pytest.raises(NotFound):
            await call(f"{PARENT}/customJobs/404")
    assert vertex.calls == {"GetCustomJob": 1, "CancelCustomJob": 1}


async def test_cancelling_a_job_that_has_ended_is_fine(jobs, vertex):
    vertex.faults["CancelCustomJob"] = failing(Code.FAILED_PRECONDITION, "the job has ended")
    await jobs.cancel("x")


async def test_a_channel_is_shared_until_its_last_user_closes_it(vertex):
    vertex.add(1, JobState.JOB_STATE_RUNNING)
    first, second = open_jobs(vertex.url), open_jobs(vertex.url)
    await asyncio.gather(*(jobs.list("") for jobs in (first, second) for _ in range(10)))
    assert len(vertex.connections) == 1
    await first.aclose()
    await first.aclose()
    await second.list("")
    assert len(vertex.connections) == 1
    await second.aclose()
    await second.list("")
    assert len(vertex.connections) == 2
    await second.aclose()


async def test_other_credentials_have_a_channel_of_their_own(vertex):
    vertex.add(1, JobState.JOB_STATE_RUNNING)
    mine, yours = AnonymousCredentials(), AnonymousCredentials()
    each = [open_jobs(vertex.url, credentials=credentials) for credentials in (mine, yours, mine, None)]
    for jobs in each:
        await jobs.list("")
    assert len(vertex.connections) == 3
    for jobs in each:
        await jobs.aclose()


async def test_every_call_carries_a_deadline(vertex):
    jobs = open_jobs(vertex.url)
    name = vertex.add(1, JobState.JOB_STATE_RUNNING)
    job = CustomJob(display_name="x")
    for call, method, seconds in (
        (jobs.create(job), "CreateCustomJob", 60),
        (jobs.get(name), "GetCustomJob", 30),
        (jobs.list(""), "ListCustomJobs", 30),
        (jobs.cancel(name), "CancelCustomJob", 30),
        (jobs.create(job, timeout_seconds=600), "CreateCustomJob", 600),
    ):
        asked = time.monotonic()
        await call
        passed = time.monotonic() - asked
        # What is left when the server has the request: all but what passed on the way. gRPC rounds it.
        assert seconds - passed - 1 <= vertex.seconds_left[method] <= seconds + 1
    await jobs.aclose()


async def test_an_answer_may_be_larger_than_grpc_allows_by_itself(jobs, vertex):
    name = vertex.add(1, JobState.JOB_STATE_FAILED, error={"code": 3, "message": "x" * 5_000_000})
    assert len((await jobs.get(name)).error_message) == 5_000_000


async def test_a_read_is_sent_as_often_as_the_caller_wants(jobs, vertex):
    vertex.faults["GetCustomJob"] = failing(Code.UNAVAILABLE, "later")
    with pytest.raises(Transient):
        await jobs.get("x", attempts=1)
    assert vertex.calls == {"GetCustomJob": 1}


async def test_a_call_over_tls_is_answered_and_carries_the_token(tmp_path):
    key, certificate = certificate_of_localhost()
    (tmp_path / "roots.pem").write_bytes(certificate)
    async with scripted_vertex(grpc.ssl_server_credentials([(key, certificate)])) as vertex:
        name = vertex.add(1, JobState.JOB_STATE_RUNNING)
        # gRPC reads the roots it trusts once in a process.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", GET, vertex.url, name, stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "roots.pem")},
        )  # fmt: skip
        answer, _ = await process.communicate()
        assert answer.decode().strip() == f"{name} running"
        assert vertex.authorizations == {"Bearer the-token"}


async def test_a_certificate_of_nobody_known_is_not_accepted():
    async with scripted_vertex(grpc.ssl_server_credentials([certificate_of_localhost()])) as vertex:
        jobs = open_jobs(vertex.url, timeout_seconds=1, credentials=AnonymousCredentials())
        with pytest.raises(Transient):
            await jobs.get("x")
        assert vertex.calls == {}
        await jobs.aclose()


@pytest.mark.parametrize("endpoint", ["grpc://127.0.0.1:1", "https://127.0.0.1:1"])
async def test_nobody_listening_is_transient_for_a_read_and_unknown_for_a_create(endpoint):
    jobs = open_jobs(endpoint, timeout_seconds=1, credentials=AnonymousCredentials())
    with pytest.raises(Transient):
        await jobs.get("x")
    with pytest.raises(OutcomeUnknown):
        await jobs.create(CustomJob(display_name="x"))
    await jobs.aclose()


@pytest.mark.parametrize("endpoint", ["http://x", "x:1", "grpc://", "https://a/b"])
def test_an_endpoint_that_is_none_is_refused(endpoint):
    with pytest.raises(Refused, match="endpoint"):
        open_jobs(endpoint)
