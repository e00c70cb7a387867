"""Who gets into the sandbox: no web page, nobody without a key or token, and no reader of its files."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
import pytest_asyncio

from prefect_vertex_launch.core.errors import AuthenticationFailed
from prefect_vertex_launch.core.vertex_types import GetCustomJobRequest
from prefect_vertex_launch.sandbox.google.service_account import service_account_info
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.sandbox.start_refusal import StartRefusal
from prefect_vertex_launch.vertex.jobs import VertexJobs
from tests.eventually import HANG_SECONDS, finished, until
from tests.sandbox.served_vertex import PARENT, job
from tests.sandbox_access import KnownEverywhere, google_credentials, jobs_in, token_header

JOBS = f"/v1/{PARENT}/customJobs"
MODULE = pytest.mark.asyncio(loop_scope="module")
FAULT = {"server": "vertex", "what": "down"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded() -> AsyncIterator[Sandbox]:
    secrets = {"projects/p/secrets/s/versions/1": "text"}
    async with Sandbox(is_manual=True, faults_port=0, secrets=secrets) as sandbox:
        yield sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        yield client


def body(name: str) -> dict[str, Any]:
    pool = {"containerSpec": {"imageUri": "python"}, "machineSpec": {"machineType": "n1-standard-4"}}
    return {"displayName": name, "jobSpec": {"workerPoolSpecs": [{**pool, "replicaCount": "1"}]}}


def faces(sandbox: Sandbox) -> dict[str, tuple[str, str, bytes]]:
    """One request to each HTTP server that has an answer other than 403 for whoever may ask."""
    return {
        "wandb": ("POST", f"{sandbox.wandb_url}/graphql", b'{"query": "{ viewer { id } }"}'),
        "files": ("PUT", f"{sandbox.wandb_url}/storage/x", b"x"),
        "vertex-rest": ("POST", sandbox.vertex_rest_url + JOBS, json.dumps(body("job")).encode()),
        "faults": ("GET", sandbox.faults_url, b""),
        "google": ("POST", f"{sandbox.google_url}/token", b"grant_type=other"),
    }


NAMES = ["wandb", "files", "vertex-rest", "faults", "google"]


# --- web pages


@MODULE
@pytest.mark.parametrize("name", NAMES)
async def test_what_a_web_page_sends_is_refused_even_with_a_key(
    guarded: Sandbox, http: httpx.AsyncClient, name: str
):
    method, url, content = faces(guarded)[name]
    port = url.split(":")[2].partition("/")[0]

    async def status(headers: dict[str, str]) -> int:
        headers = {"Content-Type": "text/plain"} | headers
        known = KnownEverywhere(guarded)
        return (await http.request(method, url, content=content, headers=headers, auth=known)).status_code

    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", "localhost.",
                 f"127.0.0.1@evil.example:{port}", "0.0.0.0", "", "[::2]"):  # fmt: skip
        assert await status({"Host": host}) == 403, host
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert await status(headers) == 403, headers
    for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert await status({"Host": host, "Sec-Fetch-Site": "none"}) != 403, host


@MODULE
async def test_a_web_page_starts_no_job_and_switches_no_fault(guarded: Sandbox, http: httpx.AsyncClient):
    page = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    name = uuid4().hex
    await http.post(guarded.vertex_rest_url + JOBS, content=json.dumps(body(name)), headers=page)
    await http.post(guarded.faults_url, content=json.dumps(FAULT), headers=page)
    answer = await http.get(guarded.vertex_rest_url + JOBS, headers=token_header(guarded))
    assert answer.status_code == 200
    assert name not in answer.text
    assert not list(guarded.faults)


@MODULE
@pytest.mark.parametrize("name", ["wandb", "vertex-rest", "faults", "google"])
async def test_no_server_speaks_websocket(guarded: Sandbox, name: str):
    url = httpx.URL(faces(guarded)[name][1])
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{url.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Origin: https://evil.example\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    assert (await finished(reader.readline())).startswith(b"HTTP/1.1 403 ")
    assert b"answers no web page" in await finished(reader.read(4000))
    writer.close()


@MODULE
async def test_the_grpc_port_answers_no_request_of_a_browser(guarded: Sandbox):
    host, port = guarded.vertex_grpc_url.removeprefix("grpc://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    path = "/google.cloud.aiplatform.v1.JobService/ListCustomJobs"
    writer.write(f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 0\r\n\r\n".encode())
    assert b"HTTP/1.1 200" not in await finished(reader.read())
    writer.close()


# --- keys and tokens


@MODULE
@pytest.mark.parametrize("authorization", ["", "Bearer x", "Bearer ya29.sandbox.x.y", "Bearer .", "Basic é"])
async def test_nothing_is_answered_without_a_key_or_token_of_the_sandbox(
    guarded: Sandbox, http: httpx.AsyncClient, authorization: str
):
    headers = {"Authorization": authorization.encode()} if authorization else {}
    secret = ("GET", f"{guarded.google_url}/v1/projects/p/secrets/s/versions/1:access", b"")
    asked = {**faces(guarded), "a secret": secret, "a fault": ("POST", guarded.faults_url, b"{}")}
    del asked["google"]
    for name, (method, url, content) in asked.items():
        answer = await http.request(method, url, content=content, headers=headers)
        assert answer.status_code == 401, name
    async with grpc.aio.insecure_channel(guarded.vertex_grpc_url.removeprefix("grpc://")) as channel:
        get = channel.unary_unary("/google.cloud.aiplatform.v1.JobService/GetCustomJob")
        request = GetCustomJobRequest.pb()(name=f"{PARENT}/customJobs/1").SerializeToString()
        metadata = [("authorization", authorization)] if authorization.isascii() and authorization else []
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await get(request, metadata=metadata, timeout=HANG_SECONDS)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await get(request, metadata=token_header(guarded), timeout=HANG_SECONDS)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


@MODULE
async def test_each_key_opens_its_own_service_only(guarded: Sandbox, http: httpx.AsyncClient):
    """What our own client sends to the wrong service would be a secret given away at the real ones."""
    token, key = dict(token_header(guarded)), {"Authorization": f"Bearer {guarded.api_key}"}
    graphql, viewer = f"{guarded.wandb_url}/graphql", {"query": "{ viewer { id } }"}
    assert (await http.post(graphql, json=viewer, headers=token)).status_code == 401
    assert (await http.get(guarded.vertex_rest_url + JOBS, headers=key)).status_code == 401
    assert (await http.post(graphql, json=viewer, headers=key)).status_code == 200
    assert (await http.get(guarded.vertex_rest_url + JOBS, headers=token)).status_code == 200


@MODULE
async def test_a_long_body_without_a_token_is_told_so(guarded: Sandbox, http: httpx.AsyncClient):
    answer = await http.post(guarded.vertex_rest_url + JOBS, content=b"x" * 5_000_000)
    assert (answer.status_code, answer.json()["error"]["status"]) == (401, "UNAUTHENTICATED")


@MODULE
async def test_only_the_sandboxs_own_service_account_gets_tokens(guarded: Sandbox, http: httpx.AsyncClient):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    mine = guarded.service_account_info("p")
    made = rsa.generate_private_key(public_exponent=65537, key_size=1024).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    others = service_account_info("p", made.decode(), mine["token_uri"])
    for info, is_known in ((mine, True), (others, False)):
        jobs = VertexJobs(
            project="p", location="us-central1", endpoint=guarded.vertex_grpc_url,
            credentials=google_credentials(info),
        )  # fmt: skip
        if is_known:
            await jobs.list("")
        else:
            with pytest.raises(AuthenticationFailed, match="invalid_grant"):
                await jobs.list("")
        await jobs.aclose()
    for form in ({}, {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "a.b.c"}):
        assert (await http.post(mine["token_uri"], data=form)).status_code == 400


@MODULE
async def test_a_token_for_this_machine_is_sent_nowhere_else_and_no_other_in_the_clear(guarded: Sandbox):
    elsewhere = {**guarded.service_account_info("p"), "token_uri": "https://oauth2.googleapis.com/token"}
    jobs = VertexJobs(
        project="p", location="us-central1", endpoint=guarded.vertex_grpc_url,
        credentials=google_credentials(elsewhere),
    )  # fmt: skip
    with pytest.raises(AuthenticationFailed, match="Expected OAuth 2 access token"):
        await jobs.list("")
    await jobs.aclose()


@MODULE
async def test_the_metadata_server_gives_its_token_to_the_jobs_alone(
    guarded: Sandbox, http: httpx.AsyncClient
):
    path = "computeMetadata/v1/instance/service-accounts/default/token"
    flavor = {"Metadata-Flavor": "Google"}
    for guess in ("", "x/"):
        answer = await http.get(f"{guarded.google_url}/{guess}{path}", headers=flavor)
        assert answer.status_code == 404
    host = guarded.vertex.container_variables["GCE_METADATA_HOST"]
    assert (await http.get(f"http://{host}/{path}", headers=flavor)).json()["access_token"]


@MODULE
async def test_a_files_address_is_signed_for_that_file_alone(guarded: Sandbox, http: httpx.AsyncClient):
    storage = guarded.wandb.storage
    mine = storage.url("run/mine")
    assert (await http.put(mine, content=b"mine")).status_code == 200
    assert (await http.get(mine)).content == b"mine"
    other = mine.replace("run/mine", "run/other")
    for url in (other, mine.partition("?")[0], mine[:-1], mine.replace("run/mine", "run/x/../other")):
        assert (await http.put(url, content=b"not mine")).status_code == 401
        assert (await http.get(url)).status_code == 401
    assert storage.read("run/other") is None


async def test_keys_and_tokens_hold_over_a_restart_with_its_state_and_are_new_without(tmp_path: Path):
    async with Sandbox(state=tmp_path / "state.db") as first:
        key, token, account = first.api_key, token_header(first), first.service_account_info("p")
    async with Sandbox(state=tmp_path / "state.db") as again, httpx.AsyncClient() as http:
        assert again.api_key == key
        assert again.service_account_info("p")["private_key"] == account["private_key"]
        assert (await http.get(again.vertex_rest_url + JOBS, headers=token)).status_code == 200
    async with Sandbox() as other, httpx.AsyncClient() as http:
        assert other.api_key != key
        assert (await http.get(other.vertex_rest_url + JOBS, headers=token)).status_code == 401


# --- files


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def readable_by_others(directory: Path) -> list[str]:
    """What somebody else may read, if they may enter `directory`."""
    found: list[str] = []
    for path in directory.iterdir():
        if path.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            found.append(path.name)
            if path.is_dir():
                found += readable_by_others(path)
    return found


async def _has_ended(jobs: VertexJobs, name: str) -> bool:
    return (await jobs.get(name)).is_terminal


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _text(path: str) -> str:
    return Path(path).read_text()


@pytest.mark.usefixtures("usual_umask")
async def test_only_its_owner_reads_what_it_writes(tmp_path: Path):
    state = tmp_path / "state.db"
    options = {"state": state, "request_log": tmp_path / "log", "queued_seconds": 0, "pending_seconds": 0}
    (tmp_path / "log").touch(0o644)
    for _ in range(2):
        async with Sandbox(**options) as sandbox:
            jobs = jobs_in(sandbox)
            created = await jobs.create(job())
            await until(partial(_has_ended, jobs, created.name))
            await jobs.aclose()
            assert {"state.db", "state.db.jobs", "log"} <= _names(tmp_path)
            assert readable_by_others(tmp_path) == []
        state.chmod(0o644)  # as one was that an earlier version made


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize("with_state", [True, False])
async def test_the_command_shows_its_keys_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_state: bool
):
    key = f"mine_{uuid4().hex}{uuid4().hex}"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SANDBOX_API_KEY", key)
    state = ["--state", str(tmp_path / "state.db")] if with_state else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "prefect_vertex_launch.cli.main", "sandbox", "up", *state,
        "--queued-seconds", "0", "--pending-seconds", "0", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = json.loads(await finished(process.stdout.readline()))
        assert ready["api_key"] == key
        assert key not in _text(f"/proc/{process.pid}/cmdline")
        info = json.loads(_text(ready["google_credentials"]))
        jobs = VertexJobs(
            project="p", location="us-central1", endpoint=ready["vertex_grpc_url"],
            credentials=google_credentials(info),
        )  # fmt: skip
        created = await jobs.create(job())
        await until(partial(_has_ended, jobs, created.name))
        await jobs.aclose()
        assert readable_by_others(tmp_path) == []
    finally:
        process.terminate()
        await finished(process.wait())
    if not with_state:
        assert _names(tmp_path) == set(), "nothing is left behind"


def test_files_with_keys_are_not_put_where_everybody_may_write(tmp_path: Path):
    everybodys = tmp_path / "tmp"
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (everybodys / "state.db").symlink_to(mine)
    for option in ("state", "request_log"):
        with pytest.raises(StartRefusal, match="a directory where everybody may write"):
            Sandbox(**{option: everybodys / "state.db"})
    assert mine.read_text() == "mine"
