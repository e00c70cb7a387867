"""The job client and the watcher against the Vertex AI sandbox over gRPC, with real local processes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from prefect_vertex_launch.core.diagnosis import Category, diagnose
from prefect_vertex_launch.core.errors import NotFound, Refused
from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.vertex.backend import VertexBackend
from prefect_vertex_launch.sandbox.vertex.grpc_service import add_job_service
from prefect_vertex_launch.vertex.job_watcher import JobWatcher
from prefect_vertex_launch.vertex.jobs import VertexJobs
from tests.eventually import HANG_SECONDS


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[VertexJobs]:
    backend = VertexBackend(
        Records(), workdir=tmp_path, images={"python": [sys.executable]}, queued_seconds=0, pending_seconds=0
    )
    server = grpc.aio.server()
    add_job_service(server, backend)
    port = server.add_insecure_port("127.0.0.1:0")
    await backend.start()
    await server.start()
    jobs = VertexJobs(project="p", location="us-central1", endpoint=f"grpc://127.0.0.1:{port}")
    yield jobs
    await jobs.aclose()
    await server.stop(grace=0)
    await backend.aclose()


def custom_job(code: str, *, item: str) -> CustomJob:
    pool = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": {"image_uri": "python", "args": ["-c", code]},
    }
    labels = {"launch-queue": "q", "launch-item": item}
    return CustomJob(display_name=item, labels=labels, job_spec={"worker_pool_specs": [pool]})


@pytest.mark.slow
async def test_jobs_are_found_by_label_and_followed_to_their_ends(jobs):
    watcher = JobWatcher(jobs, labels={"launch-queue": "q"}, interval_seconds=0.1)
    loop = asyncio.create_task(watcher.run())
    good = await jobs.create(custom_job("print('hi')", item="good"))
    bad = await jobs.create(custom_job("raise SystemExit(3)", item="bad"))
    held = await jobs.create(custom_job("import time; time.sleep(600)", item="held"))
    assert [job.name for job in await jobs.list('labels.launch-item="bad"')] == [bad.name]

    async with asyncio.timeout(HANG_SECONDS):
        ends = asyncio.gather(*(watcher.wait(job.name) for job in (good, bad, held)))
        await jobs.cancel(held.name)
        records = await ends
    loop.cancel()
    assert [record.launch_state for record in records] == [
        LaunchState.SUCCEEDED,
        LaunchState.FAILED,
        LaunchState.CANCELLED,
    ]
    assert [diagnose(record).category for record in records] == [
        Category.SUCCEEDED,
        Category.USER_CODE,
        Category.CANCELLED_ELSEWHERE,
    ]
    await jobs.cancel(held.name)


async def test_the_servers_field_errors_come_one_by_one(jobs):
    job = custom_job("", item="bad")
    job.labels["Not-Lower"] = "x"
    job.job_spec.worker_pool_specs[0].machine_spec.accelerator_count = 1
    with pytest.raises(Refused) as caught:
        await jobs.create(job)
    assert len(caught.value.problems) == 2
    assert await jobs.list("") == ()


async def test_a_job_that_is_not_there_is_not_found(jobs):
    with pytest.raises(NotFound):
        await jobs.get(f"{jobs.parent}/customJobs/1")
