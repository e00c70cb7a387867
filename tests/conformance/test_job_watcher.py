"""The watcher over gRPC in virtual time: every pass is asked for by the test."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from random import Random

import grpc
import pytest
from scripted_vertex import ScriptedVertex, failing, scripted_vertex

from vertex_launch.job_watcher import JobWatcher
from vertex_launch.lifecycle import JobRecord, LaunchState
from vertex_launch.vertex_jobs import VertexJobs
from vertex_launch.vertex_sdk import JobState

RUNNING, SUCCEEDED = JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_SUCCEEDED


class StepClock:
    """Sleeping ends when the test says so; short pauses, those of a retry, end at once."""

    def __init__(self) -> None:
        self.asleep = asyncio.Event()
        self.sleeps: list[float] = []
        self._step = asyncio.Event()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return sum(self.sleeps)

    async def sleep(self, seconds: float) -> None:
        if seconds < 10:
            return
        self.sleeps.append(seconds)
        self.asleep.set()
        await self._step.wait()

    async def step(self) -> None:
        """Let the pass that is under way end, then run one more to its end."""
        async with asyncio.timeout(20):
            await self.asleep.wait()
            self.asleep.clear()
            self._step.set()
            await asyncio.sleep(0)
            self._step.clear()
            await self.asleep.wait()


async def let_others_run() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


class Scene:
    def __init__(
        self, vertex: ScriptedVertex, clock: StepClock, jobs: VertexJobs, watcher: JobWatcher
    ) -> None:
        self.vertex, self.clock, self.jobs, self.watcher = vertex, clock, jobs, watcher

    def wait(self, name: str, seen: list[JobRecord] | None = None) -> asyncio.Task[JobRecord]:
        async def remember(job: JobRecord) -> None:
            if seen is not None:
                seen.append(job)

        return asyncio.create_task(self.watcher.wait(name, remember))

    def finish(self, name: str, state: JobState = SUCCEEDED) -> None:
        self.vertex.jobs[name].state = state
        self.vertex.jobs[name].end_time = self.clock.now()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    clock = StepClock()
    async with scripted_vertex() as vertex:
        jobs = VertexJobs(
            project="p", location="us-central1", endpoint=vertex.url, clock=clock, random=Random(1)
        )
        watcher = JobWatcher(jobs, labels={"launch-queue": "q"}, interval_seconds=10, clock=clock)
        loop = asyncio.create_task(watcher.run())
        yield Scene(vertex, clock, jobs, watcher)
        assert not loop.done()
        loop.cancel()
        await jobs.aclose()


async def test_a_wait_ends_with_the_job_and_tells_each_change_once(scene):
    name, seen = scene.vertex.add(1, JobState.JOB_STATE_QUEUED), []
    waiting = scene.wait(name, seen)
    await scene.clock.step()
    scene.vertex.jobs[name].state = RUNNING
    await scene.clock.step()
    await scene.clock.step()
    assert not waiting.done()
    scene.finish(name)
    await scene.clock.step()
    assert (await waiting).launch_state is LaunchState.SUCCEEDED
    assert [job.launch_state.value for job in seen] == ["queued", "running", "succeeded"]
    assert scene.watcher.watching == 0


async def test_only_live_jobs_of_the_labels_are_listed(scene):
    scene.wait(scene.vertex.add(1, RUNNING))
    await scene.clock.step()
    selection = scene.vertex.requests[0].filter
    assert selection.startswith('labels.launch-queue="q" AND (')
    listed = {state.name for state in JobState if f'"{state.name}"' in selection}
    assert listed == {
        "JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_CANCELLING",
        "JOB_STATE_PAUSED", "JOB_STATE_UPDATING",
    }  # fmt: skip


async def test_a_thousand_waiting_jobs_cost_ten_pages_a_pass_and_one_read_when_they_end(scene):
    names = [scene.vertex.add(number, RUNNING) for number in range(1000)]
    waits = [scene.wait(name) for name in names]
    await scene.clock.step()
    scene.vertex.calls.clear()
    started = time.process_time()
    for _ in range(5):
        await scene.clock.step()
    assert time.process_time() - started < 5
    assert scene.vertex.calls == {"ListCustomJobs": 50}
    scene.finish(names[3])
    await scene.clock.step()
    assert (await waits[3]).is_terminal
    assert scene.vertex.calls == {"ListCustomJobs": 60, "GetCustomJob": 1}
    assert scene.watcher.watching == 999
    for wait in waits:
        wait.cancel()


async def test_nothing_is_asked_while_nobody_waits(scene):
    await let_others_run()
    assert scene.jobs.calls.total() == 0
    waiting = scene.wait(scene.vertex.add(1, RUNNING))
    await scene.clock.step()
    waiting.cancel()
    await let_others_run()
    scene.jobs.calls.clear()
    scene.watcher.wake()
    await let_others_run()
    assert scene.jobs.calls.total() == 0


@pytest.mark.parametrize("method", ["ListCustomJobs", "GetCustomJob"])
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED])
async def test_a_failing_read_ends_no_wait(scene, method, code):
    name = scene.vertex.add(1, RUNNING)
    waiting = scene.wait(name)
    await scene.clock.step()
    scene.vertex.faults[method] = failing(code, "not now")
    scene.finish(name)
    for _ in range(3):
        await scene.clock.step()
    assert not waiting.done()
    if method == "ListCustomJobs":
        assert scene.clock.sleeps[-3:] == [20, 40, 80]
    scene.vertex.faults.clear()
    await scene.clock.step()
    assert (await waiting).launch_state is LaunchState.SUCCEEDED


async def test_a_job_that_vanished_is_lost_after_three_reads(scene):
    name = scene.vertex.add(1, RUNNING)
    waiting = scene.wait(name)
    await scene.clock.step()
    del scene.vertex.jobs[name]
    for _ in range(2):
        await scene.clock.step()
    assert not waiting.done()
    await scene.clock.step()
    assert (await waiting).launch_state is LaunchState.LOST


async def test_an_unknown_state_is_waited_on_and_logged_once(scene, caplog):
    name = scene.vertex.add(1, RUNNING)
    waiting = scene.wait(name)
    await scene.clock.step()
    scene.vertex.jobs[name] = type(scene.vertex.jobs[name])(name=name, state=42)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await scene.clock.step()
    assert not waiting.done()
    assert len([record for record in caplog.records if "42" in record.getMessage()]) == 1
    scene.finish(name)
    await scene.clock.step()
    assert (await waiting).launch_state is LaunchState.SUCCEEDED


async def test_a_list_that_lags_takes_nothing_back(scene):
    name, seen = scene.vertex.add(1, JobState.JOB_STATE_CANCELLING), []
    waiting = scene.wait(name, seen)
    await scene.clock.step()
    scene.vertex.jobs[name].state = RUNNING
    await scene.clock.step()
    assert [job.launch_state.value for job in seen] == ["cancelling"]
    waiting.cancel()


async def test_a_job_missing_from_the_list_is_read_before_anything_is_believed(scene):
    name = scene.vertex.add(1, RUNNING)
    scene.vertex.listed = lambda job: False
    waiting = scene.wait(name)
    for _ in range(4):
        await scene.clock.step()
    assert not waiting.done()
    waiting.cancel()


async def test_a_listener_that_fails_harms_no_wait(scene):
    async def broken(_job: JobRecord) -> None:
        raise RuntimeError("listener")

    name = scene.vertex.add(1, RUNNING)
    waiting = asyncio.create_task(scene.watcher.wait(name, broken))
    await scene.clock.step()
    scene.finish(name)
    await scene.clock.step()
    assert (await waiting).is_terminal


async def test_wake_starts_the_next_pass_at_once(scene):
    name = scene.vertex.add(1, RUNNING)
    waiting = scene.wait(name)
    async with asyncio.timeout(10):
        await scene.clock.asleep.wait()
        scene.finish(name)
        scene.watcher.wake()
        assert (await waiting).is_terminal


async def test_the_name_may_come_back_with_the_projects_number(scene):
    name = scene.vertex.add(1, RUNNING)
    scene.vertex.jobs[name].name = name.replace("projects/p/", "projects/123/")
    waiting = scene.wait(name)
    await scene.clock.step()
    assert scene.vertex.calls["GetCustomJob"] == 0
    waiting.cancel()
