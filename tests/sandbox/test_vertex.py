"""The job service of the sandbox: jobs run as processes, driven by Google's own clients."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import BadRequest, FailedPrecondition, InvalidArgument, NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform import initializer, jobs
from google.protobuf.duration_pb2 import Duration

from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.sandbox.records import Records
from tests.eventually import until
from tests.sandbox.served_vertex import (
    HOLD,
    NUMBER,
    PACKAGE,
    Served,
    create,
    is_running,
    job,
    outcome,
    pool,
    pool_with,
    processes_below,
    python,
    served,
    terminal,
)


@pytest.fixture
def sdk(vertex: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[aiplatform.CustomJob]]:
    monkeypatch.setattr(jobs, "_JOB_WAIT_TIME", 0.05)
    settings = dict(vars(initializer.global_config))
    aiplatform.init(
        project="p",
        location="us-central1",
        staging_bucket="gs://b",
        credentials=AnonymousCredentials(),
        api_endpoint=vertex.rest_url,
        api_transport="rest",
    )
    yield aiplatform.CustomJob
    vars(initializer.global_config).update(settings)  # they are the process's, for every later test


# --- the real SDK over REST


async def test_the_sdk_runs_a_job_to_its_end(vertex: Served, sdk: type[aiplatform.CustomJob]):
    custom_job = sdk(display_name="train", worker_pool_specs=[python("print('trained')")], labels={"a": "b"})
    await asyncio.to_thread(custom_job.run)
    assert (await asyncio.to_thread(lambda: custom_job.state)) == JobState.JOB_STATE_SUCCEEDED
    assert vertex.backend.log(custom_job.resource_name) == "trained\n"
    read = await asyncio.to_thread(sdk.get, custom_job.resource_name)
    assert (read.display_name, dict(read.labels)) == ("train", {"a": "b"})


async def test_the_sdk_raises_what_became_of_a_failing_job(sdk: type[aiplatform.CustomJob]):
    custom_job = sdk(display_name="bad", worker_pool_specs=[python("raise SystemExit(3)")])
    with pytest.raises(RuntimeError, match="workerpool0-0 exited with a non-zero status of 3"):
        await asyncio.to_thread(custom_job.run)


async def test_the_sdk_submits_lists_cancels_and_deletes(vertex: Served, sdk: type[aiplatform.CustomJob]):
    custom_job = sdk(display_name="held", worker_pool_specs=[python(HOLD)])
    await asyncio.to_thread(custom_job.submit)
    name = custom_job.resource_name
    await until(lambda: "holding" in vertex.backend.log(name))
    listed = await asyncio.to_thread(sdk.list, filter='state="JOB_STATE_RUNNING" AND display_name="held"')
    assert [each.resource_name for each in listed] == [name]
    await asyncio.to_thread(custom_job.cancel)
    ended = await terminal(vertex, name)
    assert (ended.state, ended.error.code) == (JobState.JOB_STATE_CANCELLED, 1)
    await asyncio.to_thread(custom_job.delete)
    with pytest.raises(NotFound):
        await vertex.client.get_custom_job(name=name)


async def test_the_sdk_shows_the_field_errors_of_a_refused_job(sdk: type[aiplatform.CustomJob]):
    bad = python("pass") | {"machine_spec": {"machine_type": "n1-standard-4", "accelerator_count": 1}}
    with pytest.raises(BadRequest, match=r"List of found errors:\t1\.Field: job_spec\.worker_pool_specs"):
        await asyncio.to_thread(sdk(display_name="bad", worker_pool_specs=[bad]).submit)


# --- states and outcomes


class WrittenStates(Records):
    """Records that remember which states a job was in, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[str] = []

    def put(self, kind: str, key: str, value: dict[str, Any]) -> None:
        if kind == "vertex_job" and value["job"]["state"] not in self.states[-1:]:
            self.states.append(value["job"]["state"])
        super().put(kind, key, value)


async def test_states_move_in_vertex_ais_order(tmp_path: Path):
    records = WrittenStates()
    async with served(tmp_path, records) as vertex:
        created = await create(vertex, job())
        assert created.state == JobState.JOB_STATE_QUEUED
        ended = await terminal(vertex, created.name)
        assert ended.state == JobState.JOB_STATE_SUCCEEDED
        assert records.states == [
            f"JOB_STATE_{state}" for state in ("QUEUED", "PENDING", "RUNNING", "SUCCEEDED")
        ]
        assert ended.create_time < ended.start_time <= ended.end_time


async def test_a_program_that_is_killed_ran_out_of_memory(vertex: Served):
    ended = await outcome(vertex, job(python("import os; os.kill(os.getpid(), 9)")))
    assert ended.error.message == (
        "The replica workerpool0-0 ran out of memory and exited with a non-zero status of 9(SIGKILL)."
    )


async def test_an_image_brings_its_own_entrypoint(vertex: Served):
    ended = await outcome(vertex, job(pool(image="sandbox/hello:latest", args=["$(WHO)", "$$(WHO)"],
                                           env=[{"name": "WHO", "value": "you"}])))  # fmt: skip
    assert ended.state == JobState.JOB_STATE_SUCCEEDED
    assert vertex.backend.log(ended.name) == "hello you $(WHO)\n"


@pytest.mark.parametrize("image", ["here:5000/python", "sandbox/hello:v1@sha256:00"])
async def test_an_image_is_found_by_its_whole_name(vertex: Served, image: str):
    ended = await outcome(vertex, job(pool(image=image)))
    assert (ended.state == JobState.JOB_STATE_SUCCEEDED) == image.startswith("sandbox/hello")


@pytest.mark.parametrize("command", [(), (sys.executable, "-c", "pass")])
async def test_an_image_that_is_not_there_fails_the_job(vertex: Served, command: tuple[str, ...]):
    ended = await outcome(vertex, job(pool(*command, image="nowhere/missing:1")))
    assert ended.state == JobState.JOB_STATE_FAILED
    assert "Failed to pull the container image nowhere/missing:1" in ended.error.message


async def test_an_executor_image_that_is_not_there_fails_the_job(vertex: Served):
    ended = await outcome(vertex, pool_with(container_spec=None, python_package_spec=PACKAGE))
    assert ended.state == JobState.JOB_STATE_FAILED
    assert "Failed to pull the container image x: manifest unknown" in ended.error.message


async def test_no_replica_runs_on_if_another_cannot_be_started(vertex: Served, tmp_path: Path):
    ended = await outcome(vertex, job(python(HOLD), python("pass", args=["\0"])))
    assert ended.state == JobState.JOB_STATE_FAILED
    assert "Internal error occurred for the current attempt" in ended.error.message
    await until(lambda: not processes_below(tmp_path))


async def test_a_command_that_is_not_there_fails_as_in_a_shell(vertex: Served):
    ended = await outcome(vertex, job(pool("/no/such/program")))
    assert "status of 127" in ended.error.message


async def test_variables_are_expanded_from_those_before_them(vertex: Served):
    env = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)2 $(LATER) $(B) $$(A) $A $"},
        {"name": "LATER", "value": "$(CLOUD_ML_PROJECT_ID)"},
    ]
    code = "import os, sys; print(os.environ['B'], os.environ['LATER'], *sys.argv[1:], sep='|')"
    ended = await outcome(vertex, job(python(code, args=["$(B)", "$(PATH_", "$$$(A)"], env=env)))
    b = "12 $(LATER) $(B) $(A) $A $"
    assert vertex.backend.log(ended.name) == f"{b}|{NUMBER}|{b}|$(PATH_|$1\n"


async def test_a_container_sees_only_its_own_environment(vertex: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    code = "import os; print(dict(os.environ)); print(os.getcwd() == os.environ['HOME'])"
    custom_job = job(
        python(code, env=[{"name": "MINE", "value": "yes"}]),
        base_output_directory={"output_uri_prefix": "gs://b/out"},
        tensorboard="projects/p/locations/us-central1/tensorboards/7",
    )
    ended = await outcome(vertex, custom_job)
    log = vertex.backend.log(ended.name)
    assert "SECRET_OF_THE_HOST" not in log
    assert "'MINE': 'yes'" in log
    assert f"'CLOUD_ML_PROJECT_ID': '{NUMBER}'" in log
    assert f"'CLOUD_ML_JOB_ID': '{ended.name.rpartition('/')[2]}'" in log
    assert "'AIP_MODEL_DIR': 'gs://b/out/model/'" in log
    assert "'AIP_TENSORBOARD_RESOURCE_NAME': 'projects/p/locations/us-central1/tensorboards/7'" in log
    assert log.endswith("True\n")


def _waiting_for(file: Path) -> str:
    return (
        "import os, time\n"
        "print('up', flush=True)\n"
        f"while not os.path.exists({str(file)!r}): time.sleep(0.02)\n"
    )


async def test_the_primary_replica_decides_and_the_others_end_with_it(vertex: Served, tmp_path: Path):
    worker = (
        "import os, json, time\n"
        "print(json.loads(os.environ['CLUSTER_SPEC'])['task'], os.getpid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    go_on = tmp_path / "go-on"
    created = await create(vertex, job(python(_waiting_for(go_on)), python(worker, replicas=2)))
    await until(lambda: vertex.backend.log(created.name).count("\n") == 3)
    go_on.touch()
    ended = await terminal(vertex, created.name)
    assert ended.state == JobState.JOB_STATE_SUCCEEDED
    lines = vertex.backend.log(ended.name).splitlines()[1:]
    assert [line.rpartition(" ")[0] for line in lines] == [
        f"{{'type': 'workerpool1', 'index': {index}}}" for index in (0, 1)
    ]
    for line in lines:
        assert not is_running(int(line.rpartition(" ")[2]))


async def test_a_job_that_outlives_its_timeout_fails(vertex: Served):
    started = time.monotonic()
    ended = await outcome(vertex, job(python(HOLD), scheduling={"timeout": Duration(seconds=1)}))
    assert (ended.state, ended.error.code) == (JobState.JOB_STATE_FAILED, 4)
    assert "timeout of 1 seconds" in ended.error.message
    assert time.monotonic() - started >= 1


# --- cancelling


IGNORE_SIGTERM = "import signal; signal.signal(15, signal.SIG_IGN)\n"


async def test_cancelling_is_asynchronous(tmp_path: Path):
    go_on = tmp_path / "go-on"
    async with served(tmp_path / "work", grace_seconds=600) as vertex:
        created = await create(vertex, job(python(IGNORE_SIGTERM + _waiting_for(go_on))))
        await until(lambda: "up" in vertex.backend.log(created.name))
        await vertex.client.cancel_custom_job(name=created.name)
        assert (await vertex.client.get_custom_job(name=created.name)).state == JobState.JOB_STATE_CANCELLING
        await vertex.client.cancel_custom_job(name=created.name)
        go_on.touch()
        assert (await terminal(vertex, created.name)).state == JobState.JOB_STATE_CANCELLED
        await vertex.client.cancel_custom_job(name=created.name)


async def test_a_cancel_ends_what_ignores_sigterm(tmp_path: Path):
    async with served(tmp_path / "work", grace_seconds=0.1) as vertex:
        created = await create(vertex, job(python(IGNORE_SIGTERM + _waiting_for(tmp_path / "never"))))
        await until(lambda: "up" in vertex.backend.log(created.name))
        await vertex.client.cancel_custom_job(name=created.name)
        assert (await terminal(vertex, created.name)).state == JobState.JOB_STATE_CANCELLED


async def test_what_a_job_started_in_a_session_of_its_own_ends_with_it(vertex: Served):
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600'], start_new_session=True)"
    created = await create(vertex, job(python(f"{child}; print('child', p.pid, flush=True); p.wait()")))
    await until(lambda: "child" in vertex.backend.log(created.name))
    pid = int(vertex.backend.log(created.name).rpartition("child ")[2])
    await vertex.client.cancel_custom_job(name=created.name)
    await terminal(vertex, created.name)
    await until(lambda: not is_running(pid))


async def test_a_job_cancelled_while_queued_never_starts(tmp_path: Path):
    async with served(tmp_path, queued_seconds=60) as vertex:
        created = await create(vertex, job())
        await vertex.client.cancel_custom_job(name=created.name)
        ended = await terminal(vertex, created.name)
        assert (ended.state, ended.error.message) == (JobState.JOB_STATE_CANCELLED, "CANCELED")
        assert not ended.start_time
        assert vertex.backend.log(created.name) == ""


async def test_a_job_that_runs_cannot_be_deleted(tmp_path: Path):
    async with served(tmp_path, queued_seconds=60) as vertex:
        created = await create(vertex, job())
        with pytest.raises(FailedPrecondition):
            await vertex.client.delete_custom_job(name=created.name)


async def test_a_state_that_a_test_sets_stays(vertex: Served):
    created = await create(vertex, job(python(HOLD)))
    vertex.backend.set_state(
        created.name, JobState.JOB_STATE_FAILED, 8, "Resources are insufficient in region: x."
    )
    ended = await vertex.client.get_custom_job(name=created.name)
    assert (ended.state, ended.error.code) == (JobState.JOB_STATE_FAILED, 8)
    assert ended.end_time


async def test_jobs_are_moved_by_hand_through_every_state(tmp_path: Path):
    async with served(tmp_path, is_manual=True) as vertex:
        created = await create(vertex, job(python("print('ran')")))
        for state in JobState:
            vertex.backend.set_state(created.name, state)
            read = await vertex.client.get_custom_job(name=created.name)
            assert read.state == state
        assert read.start_time
        assert read.end_time
        assert vertex.backend.log(created.name) == ""

        paused = await create(vertex, job())
        assert (await vertex.client.get_custom_job(name=paused.name)).state == JobState.JOB_STATE_QUEUED
        vertex.backend.set_state(paused.name, JobState.JOB_STATE_PAUSED)
        await vertex.client.cancel_custom_job(name=paused.name)
        assert (await terminal(vertex, paused.name)).state == JobState.JOB_STATE_CANCELLED


# --- names


async def test_a_project_is_named_by_id_or_number_and_answered_by_number(vertex: Served):
    created = await create(vertex, job())
    job_id = created.name.rpartition("/")[2]
    assert created.name == f"projects/{NUMBER}/locations/us-central1/customJobs/{job_id}"
    for project in ("p", NUMBER):
        parent = f"projects/{project}/locations/us-central1"
        read = await vertex.client.get_custom_job(name=f"{parent}/customJobs/{job_id}")
        listed = [each async for each in await vertex.client.list_custom_jobs(parent=parent)]
        assert [read.name, *(each.name for each in listed)] == [created.name] * 2
    elsewhere = "projects/other/locations/us-central1"
    other = await vertex.client.create_custom_job(parent=elsewhere, custom_job=job())
    assert re.fullmatch(r"projects/\d{12}/locations/us-central1/customJobs/\d+", other.name)
    with pytest.raises(NotFound):
        await vertex.client.get_custom_job(name=f"{elsewhere}/customJobs/{job_id}")
    for bad in ("projects/p", "p", "projects/p/locations/us-central1/x"):
        with pytest.raises(InvalidArgument, match="Invalid resource name"):
            await vertex.client.create_custom_job(parent=bad, custom_job=job())


# --- restarts


async def test_a_state_file_carries_jobs_over_a_restart(tmp_path: Path):
    state, go_on = tmp_path / "state.db", tmp_path / "go-on"
    async with served(tmp_path / "work", Records(state)) as vertex:
        done = await outcome(vertex, job(name="done"))
        finishing = await create(vertex, job(python(_waiting_for(go_on) + "raise SystemExit(4)")))
        held = await create(vertex, job(python(HOLD)))
        for each in (finishing, held):
            await until(lambda each=each: vertex.backend.log(each.name))
    go_on.touch()
    async with served(tmp_path / "work", Records(state)) as vertex:
        assert await vertex.client.get_custom_job(name=done.name) == done
        assert "status of 4." in (await terminal(vertex, finishing.name)).error.message
        assert (await vertex.client.get_custom_job(name=held.name)).state == JobState.JOB_STATE_RUNNING
        await vertex.client.cancel_custom_job(name=held.name)
        assert (await terminal(vertex, held.name)).state == JobState.JOB_STATE_CANCELLED
        assert (await create(vertex, job())).name not in {done.name, finishing.name, held.name}


_SAY_PID = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.mark.parametrize("state", [None, JobState.JOB_STATE_EXPIRED])
async def test_without_a_state_file_nothing_runs_on(tmp_path: Path, state: JobState | None):
    async with served(tmp_path) as vertex:
        created = await create(vertex, job(python(_SAY_PID)))
        await until(lambda: vertex.backend.log(created.name))
        pid = int(vertex.backend.log(created.name))
        assert is_running(pid)
        if state is not None:
            vertex.backend.set_state(created.name, state)
    await until(lambda: not is_running(pid))
