"""How the job service of the sandbox starts jobs that are large, too large, or cannot be started at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from prefect_vertex_launch.core.vertex_types import CustomJob, JobState
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.vertex.backend import VertexBackend
from tests.eventually import HANG_SECONDS, until
from tests.sandbox.served_vertex import (
    HOLD,
    PARENT,
    Served,
    create,
    job,
    outcome,
    pool,
    processes_below,
    python,
    terminal,
)

REPLICAS = 30


def started(workdir: Path) -> int:
    return len(list(workdir.glob("*/workerpool1-*")))


async def test_others_are_answered_while_a_job_of_many_replicas_starts(vertex: Served, tmp_path: Path):
    held = await create(vertex, job(python(HOLD), pool("true", replicas=REPLICAS)))
    seen: set[int] = set()
    while started(tmp_path) < REPLICAS:
        seen.add(started(tmp_path))
        await asyncio.sleep(0)
    assert len(seen) > 5
    await until(lambda: vertex.backend.get(held.name).state == JobState.JOB_STATE_RUNNING)


async def test_a_job_that_is_cancelled_while_it_starts_leaves_nothing(vertex: Served, tmp_path: Path):
    held = await create(vertex, job(python(HOLD), pool("sleep", "100", replicas=REPLICAS)))
    async with asyncio.timeout(HANG_SECONDS):
        while not 0 < started(tmp_path) < REPLICAS:
            await asyncio.sleep(0)
    vertex.backend.cancel(held.name)
    assert (await terminal(vertex, held.name)).state == JobState.JOB_STATE_CANCELLED
    assert started(tmp_path) < REPLICAS
    await until(lambda: not processes_below(tmp_path))


@pytest.mark.parametrize("part", ["a variable", "an argument", "all arguments"])
async def test_what_grows_beyond_what_a_process_may_be_given_fails_the_job(vertex: Served, part: str):
    levels = {"a variable": 12, "an argument": 4, "all arguments": 5}[part]
    env = [{"name": "A0", "value": "x"}]
    env += [{"name": f"A{n}", "value": f"$(A{n - 1})" * 10} for n in range(1, levels + 1)]
    args = {"a variable": [], "an argument": ["$(A4)" * 50], "all arguments": ["$(A5)"] * 5000}[part]
    ended = await outcome(vertex, job(pool("true", env=env, args=args)))
    assert ended.state == JobState.JOB_STATE_FAILED
    assert "Argument list too long" in ended.error.message


async def test_a_job_that_cannot_be_moved_on_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    images = {"broken": [object()]}
    backend = VertexBackend(Records(), workdir=tmp_path, images=images, queued_seconds=0, pending_seconds=0)
    name = backend.create(PARENT, CustomJob.pb(job(pool(image="broken")))).name
    await until(lambda: backend.get(name).state == JobState.JOB_STATE_FAILED)
    assert "Internal error occurred" in backend.get(name).error.message
    assert "A job of the Vertex AI sandbox failed" in caplog.text
    await backend.aclose()
