"""The sandbox as a whole: its start and end, its command, its images, and its service account key."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_vertex_launch.cli.demo.servers import free_port
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.core.vertex_types import CustomJob, JobState
from prefect_vertex_launch.sandbox.images import IMAGES
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.sandbox.start_refusal import StartRefusal
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.endpoint import WandbEndpoint
from prefect_vertex_launch.wandb.queue import WandbQueue
from tests.eventually import HANG_SECONDS, finished, until
from tests.sandbox.served_vertex import processes_below
from tests.sandbox_access import google_credentials, jobs_in, token_header

HOLD = ("-c", "import time; print('holding', flush=True); time.sleep(600)")


def jobs_at(ready: dict[str, Any]) -> VertexJobs:
    """Jobs in the sandbox that has printed this line."""
    info = json.loads(Path(ready["google_credentials"]).read_text())
    return VertexJobs(
        project="p",
        location="us-central1",
        endpoint=ready["vertex_grpc_url"],
        credentials=google_credentials(info),
    )


def custom_job(image: str, *args: str, env: dict[str, str] | None = None) -> CustomJob:
    pool = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": {
            "image_uri": image,
            "args": args,
            "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
        },
    }
    return CustomJob(display_name="job", job_spec={"worker_pool_specs": [pool]})


# --- in the process


async def test_both_vertex_addresses_share_one_store(sandbox: Sandbox):
    jobs = jobs_in(sandbox)
    created = await jobs.create(custom_job("python", "-c", "pass"))
    async with httpx.AsyncClient(timeout=HANG_SECONDS, headers=token_header(sandbox)) as http:
        read = (await http.get(f"{sandbox.vertex_rest_url}/v1/{created.name}")).json()
        assert read["name"] == created.name
        answer = await http.post(f"{sandbox.wandb_url}/graphql", json={"query": "{ viewer { id } }"})
        assert answer.status_code == 401
    await jobs.aclose()


async def test_it_starts_and_stops_often_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    open_files: list[int] = []
    for _ in range(5):
        async with Sandbox(queued_seconds=0, pending_seconds=0) as sandbox:
            jobs = jobs_in(sandbox)
            held = await jobs.create(custom_job("python", *HOLD))
            await until(partial(sandbox.vertex.log, held.name))
            await jobs.aclose()
        assert _entries(tmp_path) == []
        open_files.append(len(_entries(Path("/proc/self/fd"))))
    assert open_files[-1] <= open_files[1]
    assert not processes_below(tmp_path)


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@pytest.mark.parametrize("name", ["wandb_port", "vertex_rest_port", "vertex_grpc_port"])
async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_behind(
    sandbox: Sandbox, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    urls = {
        "wandb_port": sandbox.wandb_url,
        "vertex_rest_port": sandbox.vertex_rest_url,
        "vertex_grpc_port": sandbox.vertex_grpc_url,
    }
    port = int(urls[name].rpartition(":")[2])
    with pytest.raises(StartRefusal, match=f"127.0.0.1:{port} cannot be listened on"):
        async with Sandbox(**{name: port}):
            pass
    assert _entries(tmp_path) == []


async def test_a_lease_takes_a_minute_unless_told_otherwise(sandbox: Sandbox, tmp_path: Path):
    assert sandbox.wandb.items.lease_seconds == 60
    async with Sandbox(lease_seconds=5, workdir=tmp_path) as other:
        assert other.wandb.items.lease_seconds == 5


# --- the state file


async def test_one_sandbox_at_a_time_has_a_state_file(tmp_path: Path):
    state = tmp_path / "state.db"
    async with Sandbox(state=state):
        with pytest.raises(StartRefusal, match="in use by another sandbox"):
            Sandbox(state=state)
    async with Sandbox(state=state):
        pass


def test_a_state_file_that_cannot_be_had_is_refused_with_the_reason(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no database, but long enough to look like one\n" * 100)
    for state, reason in (
        (tmp_path / "notes.txt", "notes.txt is not a state file of the sandbox: file is not a database"),
        (tmp_path / "none" / "state.db", "there is no directory .*none"),
        (tmp_path, "cannot be used: unable to open database file"),
    ):
        with pytest.raises(StartRefusal, match=reason):
            Records(state)
    assert (tmp_path / "notes.txt").read_text().startswith("no database"), "what is there stays as it is"


# --- the images


@pytest.mark.slow
async def test_images_are_what_they_say(sandbox: Sandbox):
    def environment(run_id: str, **config: Any) -> dict[str, str]:
        return {
            "WANDB_BASE_URL": sandbox.wandb_url,
            "WANDB_API_KEY": sandbox.api_key,
            "WANDB_ENTITY": sandbox.entity,
            "WANDB_PROJECT": "runs",
            "WANDB_RUN_ID": run_id,
            "WANDB_LAUNCH": "True",
            "WANDB_CONFIG": json.dumps(config),
        }

    jobs = jobs_in(sandbox)
    train = ("sandbox/train", "--learning-rate", "0.5")
    started = [
        await jobs.create(custom_job(*train, env=environment("train", epochs=2))),
        await jobs.create(custom_job("sandbox/fail", env=environment("fail"))),
        await jobs.create(custom_job("sandbox/no-wandb")),
        await jobs.create(custom_job("sandbox/hold", env=environment("hold"))),
    ]
    trained, failed, plain = [await _end_of(jobs, job) for job in started[:3]]
    await until(lambda: sandbox.wandb.run("runs", "hold"))
    await jobs.cancel(started[3].name)
    held = await _end_of(jobs, started[3])
    await jobs.aclose()

    assert [job.state for job in (trained, failed, plain, held)] == [
        JobState.JOB_STATE_SUCCEEDED,
        JobState.JOB_STATE_FAILED,
        JobState.JOB_STATE_SUCCEEDED,
        JobState.JOB_STATE_CANCELLED,
    ], sandbox.vertex.log(trained.name)
    assert "workerpool0-0 exited with a non-zero status of 1." in failed.error_message
    assert sandbox.vertex.log(plain.name) == "hello from a job without wandb\n"
    run = sandbox.wandb.run("runs", "train")
    assert run is not None
    assert run.state == "finished"
    assert {"epochs": 2, "learning_rate": 0.5, "final_loss": 0.25}.items() <= run.summary.items()
    failed_run = sandbox.wandb.run("runs", "fail")
    assert failed_run is not None
    assert failed_run.state == "failed"


async def _end_of(jobs: VertexJobs, job: JobRecord) -> JobRecord:
    async def ended() -> JobRecord | None:
        read = await jobs.get(job.name)
        return read if read.is_terminal else None

    return await until(ended)


def test_every_image_has_its_program():
    for command in IMAGES.values():
        assert all(Path(word).is_file() for word in command)


async def test_an_image_can_be_added(tmp_path: Path):
    images = {"mine/echo": ("echo", "mine")}
    async with Sandbox(images=images, workdir=tmp_path, queued_seconds=0, pending_seconds=0) as sandbox:
        jobs = jobs_in(sandbox)
        ended = await _end_of(jobs, await jobs.create(custom_job("mine/echo:v1", "yours")))
        await jobs.aclose()
        assert sandbox.vertex.log(ended.name) == "mine yours\n"


# --- the command


@dataclass
class Command:
    """`vertex-launch sandbox up` in a process of its own."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @classmethod
    def start(cls, *options: str) -> Command:
        program = Path(sys.executable).with_name("vertex-launch")
        process = subprocess.Popen(
            [str(program), "sandbox", "up", *options],
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        )
        assert process.stdout is not None
        return cls(process, json.loads(process.stdout.readline()))

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=HANG_SECONDS)
        return self.process.returncode, rest


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*options: str) -> Command:
        started.append(Command.start(*options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.mark.slow
async def test_the_command_survives_a_crash_with_its_state_and_ends_on_sigterm(
    tmp_path: Path, command: Callable[..., Command]
):
    key_file = tmp_path / "key"
    key_file.write_text("k" * 40 + "\n")
    options = (
        "--state", str(tmp_path / "state.db"), "--entity", "team", "--api-key-file", str(key_file),
        "--wandb-port", str(free_port()), "--vertex-grpc-port", str(free_port()),
        "--google-port", str(free_port()),
    )  # fmt: skip
    first = command(*options, "--image", "mine=echo hello")
    assert set(first.ready) == {
        "wandb_url", "vertex_rest_url", "vertex_grpc_url", "faults_url", "entity", "api_key", "pid",
        "google_credentials", "access_token",
    }  # fmt: skip
    assert (first.ready["entity"], first.ready["api_key"]) == ("team", "k" * 40)
    assert first.ready["pid"] == first.process.pid
    jobs = jobs_at(first.ready)
    assert (await _end_of(jobs, await jobs.create(custom_job("mine")))).error_message == ""
    held = await jobs.create(custom_job("python", *HOLD))
    await until(lambda: _is_in(jobs, held, JobState.JOB_STATE_RUNNING))
    await jobs.aclose()
    first.end(signal.SIGKILL)
    assert processes_below(tmp_path)

    second = command(*options)
    assert second.ready["wandb_url"] == first.ready["wandb_url"]
    jobs = jobs_at(second.ready)
    assert (await jobs.get(held.name)).state == JobState.JOB_STATE_RUNNING
    assert len(await jobs.list("")) == 2
    await jobs.cancel(held.name)
    assert (await _end_of(jobs, held)).state == JobState.JOB_STATE_CANCELLED
    await jobs.aclose()
    assert not [text for text in processes_below(tmp_path) if "sandbox" not in text]
    assert second.end(signal.SIGTERM) == (0, "")


@pytest.mark.slow
async def test_the_command_ends_with_two_lines_and_3_when_it_cannot_start(
    tmp_path: Path, command: Callable[..., Command]
):
    state = str(tmp_path / "state.db")
    up = command("--state", state)
    taken = up.ready["vertex_rest_url"].rpartition(":")[2]
    refused = await asyncio.gather(_refused("--vertex-rest-port", taken), _refused("--state", state))
    facts = [f"127.0.0.1:{taken} cannot be listened on", "is in use by another sandbox"]
    for lines, fact in zip(refused, facts, strict=True):
        assert [line.partition(" ")[0] for line in lines] == ["error:", "hint:"]
        assert fact in lines[0]
    assert up.end(signal.SIGTERM) == (0, "")


async def _refused(*options: str) -> list[str]:
    """Return what the command wrote to stderr when it ended with 3 and without a word to stdout."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("vertex-launch"), "sandbox", "up", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await finished(process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, out) == (3, b"")
    return err.decode().splitlines()


async def test_the_command_takes_the_time_of_a_lease_and_logs_requests(
    tmp_path: Path, command: Callable[..., Command]
):
    state = tmp_path / "state.db"
    records = Records(state)
    backend = WandbBackend(records, entity="sandbox", api_key="k" * 40)
    config = backend.queues.create_config("sandbox", "gcp-vertex", "{}", None)
    backend.queues.create(
        "sandbox", "model-registry", "q", created_by="ann", resource_config_id=config.id
    )  # fmt: skip
    item = backend.push_raw("q", "{}")
    records.close()

    log = tmp_path / "requests.jsonl"
    up = command("--state", str(state), "--lease-seconds", "0", "--request-log", str(log))
    endpoint = WandbEndpoint(up.ready["wandb_url"], SecretStr(up.ready["api_key"]))
    async with WandbQueue(endpoint, entity="sandbox", queue="q") as queue:
        popped = [await queue.pop(None) for _ in range(2)]
    assert [each.item_id for each in popped if each] == [item, item], "it is back before the second pop"
    # A request is logged once it is answered, which may be after its client has the answer.
    assert up.end(signal.SIGTERM) == (0, "")
    assert [json.loads(line)["operation"] for line in log.read_text().splitlines()] == ["popFromRunQueue"] * 2


async def _is_in(jobs: VertexJobs, job: JobRecord, state: JobState) -> bool:
    return (await jobs.get(job.name)).state == state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_without_a_state_file_ends_its_jobs(
    tmp_path: Path, command: Callable[..., Command], number: signal.Signals
):
    up = command()
    jobs = jobs_at(up.ready)
    mark = str(tmp_path)
    held = await jobs.create(custom_job("python", *HOLD, mark))
    await until(lambda: _is_in(jobs, held, JobState.JOB_STATE_RUNNING))
    await jobs.aclose()
    assert processes_below(tmp_path)
    assert up.end(number) == (0, "")
    assert not processes_below(tmp_path)
