"""The watcher over gRPC in virtual time: every pass is asked for by the test."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from random import Random
from types import FrameType
from typing import Any

import grpc
import pytest

from prefect_vertex_launch.core.states import JobRecord, LaunchState
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.vertex.job_watcher import LOOKS_AT_ONCE, JobWatcher
from prefect_vertex_launch.vertex.jobs import VertexJobs
from tests.adapters.scripted_vertex import ScriptedVertex, failing, scripted_vertex
from tests.eventually import HANG_SECONDS, finished

RUNNING, SUCCEEDED = JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_SUCCEEDED


class StepClock:
    """Sleeping ends when the test says so; short pauses, those of a retry, end at once."""

    def __init__(self) -> None:
        self.asleep = asyncio.Event()
        self.sleeps: list[float] = []
        self.seconds = 0.0
        self._step = asyncio.Event()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        if seconds < 10:
            return
        self.sleeps.append(seconds)
        self.asleep.set()
        await self._step.wait()
        self.seconds += seconds

    async def step(self) -> None:
        """Let the pass that is under way end, then run one more to its end."""
        async with asyncio.timeout(HANG_SECONDS):
            await self.asleep.wait()
            self.asleep.clear()
            self._step.set()
            await asyncio.sleep(0)
            self._step.clear()
            await self.asleep.wait()


async def let_others_run() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def looks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(("look at job", "cancel "))]


class Scene:
    def __init__(
        self, vertex: ScriptedVertex, clock: StepClock, jobs: VertexJobs, watcher: JobWatcher
    ) -> None:
        self.vertex, self.clock, self.jobs, self.watcher = vertex, clock, jobs, watcher
        self.loop = asyncio.create_task(watcher.run())

    async def step(self) -> None:
        """Let one more pass run, and every look it leads to; those of the pass before end first."""
        async with asyncio.timeout(HANG_SECONDS):
            await self.clock.asleep.wait()
            await self._looked()
            await self.clock.step()
            await self._looked()

    async def _looked(self) -> None:
        while running := looks():
            await asyncio.wait(running)

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
        scene = Scene(vertex, clock, jobs, watcher)
        yield scene
        assert not scene.loop.done()
        scene.loop.cancel()
        await jobs.aclose()


async def test_a_wait_ends_with_the_job_and_tells_each_change_once(scene):
    name, seen = scene.vertex.add(1, JobState.JOB_STATE_QUEUED), []
    waiting = scene.wait(name, seen)
    await scene.step()
    scene.vertex.jobs[name].state = RUNNING
    await scene.step()
    await scene.step()
    assert not waiting.done()
    scene.finish(name)
    await scene.step()
    assert (await waiting).launch_state is LaunchState.SUCCEEDED
    assert [job.launch_state.value for job in seen] == ["queued", "running", "succeeded"]
    assert scene.watcher.watching == 0


async def test_only_live_jobs_of_the_labels_are_listed(scene):
    scene.wait(scene.vertex.add(1, RUNNING))
    await scene.step()
    selection = scene.vertex.requests[0].filter
    assert selection.startswith('labels.launch-queue="q" AND (')
    listed = {state.name for state in JobState if f'"{state.name}"' in selection}
    assert listed == {
        "JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_CANCELLING",
        "JOB_STATE_PAUSED", "JOB_STATE_UPDATING",
    }  # fmt: skip


async def calls_in_a_pass(scene: Scene) -> int:
    """How many calls of Python functions a pass takes: unlike its time, the same on every machine."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        await scene.step()
    finally:
        sys.setprofile(None)
    return calls


async def test_a_pass_over_ten_times_as_many_jobs_does_not_take_much_more_than_ten_times_as_much(scene):
    waits = [scene.wait(scene.vertex.add(number, RUNNING)) for number in range(100)]
    await scene.step()
    of_a_hundred = await calls_in_a_pass(scene)
    waits += [scene.wait(scene.vertex.add(number, RUNNING)) for number in range(100, 1000)]
    await scene.step()
    # Twice as much: for each page the scripted server looks at every job.
    assert await calls_in_a_pass(scene) < 30 * of_a_hundred
    for wait in waits:
        wait.cancel()


async def test_a_thousand_waiting_jobs_cost_ten_pages_a_pass_and_one_read_when_they_end(scene):
    names = [scene.vertex.add(number, RUNNING) for number in range(1000)]
    waits = [scene.wait(name) for name in names]
    await scene.step()
    scene.vertex.calls.clear()
    for _ in range(5):
        await scene.step()
    assert scene.vertex.calls == {"ListCustomJobs": 50}
    scene.finish(names[3])
    await scene.step()
    assert (await waits[3]).is_terminal
    assert scene.vertex.calls == {"ListCustomJobs": 60, "GetCustomJob": 1}
    assert scene.watcher.watching == 999
    for wait in waits:
        wait.cancel()


async def test_nothing_is_asked_while_nobody_waits(scene):
    await let_others_run()
    assert scene.jobs.calls.total() == 0
    waiting = scene.wait(scene.vertex.add(1, RUNNING))
    await scene.step()
    waiting.cancel()
    await let_others_run()
    scene.jobs.calls.clear()
    scene.watcher.wake()
    await let_others_run()
    assert scene.jobs.calls.total() == 0


async def test_a_second_job_of_an_item_is_cancelled_on_the_pass_that_shows_it(scene):
    labels, second = {"launch-item": "i", "launch-queue": "q"}, datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
    younger = scene.vertex.add(2, RUNNING, labels=labels, create_time=second)
    waiting = scene.wait(younger)
    await scene.step()
    assert scene.vertex.calls["CancelCustomJob"] == 0
    older = scene.vertex.add(1, RUNNING, labels=labels, create_time=datetime(2026, 1, 1, tzinfo=UTC))
    scene.vertex.faults["CancelCustomJob"] = failing(grpc.StatusCode.UNAVAILABLE, "not now", times=10)
    for _ in range(3):
        await scene.step()
    asked = scene.vertex.calls["CancelCustomJob"]
    assert asked > 10, "it is asked again on each pass until the cancel is taken"
    scene.vertex.jobs[younger].state = JobState.JOB_STATE_CANCELLING
    await scene.step()
    await scene.step()
    assert scene.vertex.calls["CancelCustomJob"] == asked, "a job that is being cancelled is left alone"
    cancelled = [request.name for request in scene.vertex.requests if "Cancel" in type(request).__name__]
    assert set(cancelled) == {younger}
    assert scene.vertex.jobs[older].state == RUNNING
    waiting.cancel()


async def test_jobs_that_nobody_waits_for_here_are_not_cancelled(scene):
    waiting = scene.wait(scene.vertex.add(3, RUNNING, labels={"launch-item": "ours"}))
    for number in (1, 2):
        scene.vertex.add(number, RUNNING, labels={"launch-item": "another agent's"})
        scene.vertex.add(number + 10, RUNNING)
    await scene.step()
    await scene.step()
    assert scene.vertex.calls["CancelCustomJob"] == 0
    waiting.cancel()


@pytest.mark.parametrize("method", ["ListCustomJobs", "GetCustomJob"])
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED])
async def test_a_failing_read_ends_no_wait(scene, method, code):
    name = scene.vertex.add(1, RUNNING)
    waiting = scene.wait(name)
    await scene.step()
    scene.vertex.faults[method] = failing(code, "not now")
    scene.finish(name)
    scene.vertex.calls.clear()
    for _ in range(3):
        await scene.step()
    assert not waiting.done()
    if method == "ListCustomJobs":
        assert scene.clock.sleeps[-3:] == [20, 40, 60]
    else:
        assert scene.vertex.calls["GetCustomJob"] == 3, "a look is one request, or the budget counts wrong"
    scene.vertex.faults.clear()
    await scene.step()
    assert (await waiting).launch_state is LaunchState.SUCCEEDED


async def test_a_job_that_vanished_is_lost_after_three_reads(scene):
    name = scene.vertex.add(1, RUNNING)
    waiting = scene.wait(name)
    await scene.step()
    del scene.vertex.jobs[name]
    for _ in range(2):
        await scene.step()
    assert not waiting.done()
    await scene.step()
    assert (await waiting).launch_state is LaunchState.LOST


async def test_an_unknown_state_is_waited_on_and_logged_once(scene, caplog):
    name = scene.vertex.add(1, RUNNING)
    waiting = scene.wait(name)
    await scene.step()
    scene.vertex.jobs[name] = type(scene.vertex.jobs[name])(name=name, state=42)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await scene.step()
    assert not waiting.done()
    assert len([record for record in caplog.records if "42" in record.getMessage()]) == 1
    scene.finish(name)
    await scene.step()
    assert (await waiting).launch_state is LaunchState.SUCCEEDED


async def test_a_list_that_lags_takes_nothing_back(scene):
    name, seen = scene.vertex.add(1, JobState.JOB_STATE_CANCELLING), []
    waiting = scene.wait(name, seen)
    await scene.step()
    scene.vertex.jobs[name].state = RUNNING
    await scene.step()
    assert [job.launch_state.value for job in seen] == ["cancelling"]
    waiting.cancel()


async def test_a_job_missing_from_the_list_is_read_before_anything_is_believed(scene):
    name = scene.vertex.add(1, RUNNING)
    scene.vertex.listed = lambda job: False
    waiting = scene.wait(name)
    for _ in range(4):
        await scene.step()
    assert not waiting.done()
    waiting.cancel()


async def test_a_listener_that_fails_harms_no_wait(scene):
    async def broken(_job: JobRecord) -> None:
        raise RuntimeError("listener")

    name = scene.vertex.add(1, RUNNING)
    waiting = asyncio.create_task(scene.watcher.wait(name, broken))
    await scene.step()
    scene.finish(name)
    await scene.step()
    assert (await waiting).is_terminal


async def test_wake_starts_the_next_pass_at_once(scene):
    name = scene.vertex.add(1, RUNNING)
    waiting = scene.wait(name)
    async with asyncio.timeout(HANG_SECONDS):
        await scene.clock.asleep.wait()
        scene.finish(name)
        scene.watcher.wake()
        assert (await waiting).is_terminal


async def test_the_name_may_come_back_with_the_projects_number(scene):
    name = scene.vertex.add(1, RUNNING)
    scene.vertex.jobs[name].name = name.replace("projects/p/", "projects/123/")
    waiting = scene.wait(name)
    await scene.step()
    assert scene.vertex.calls["GetCustomJob"] == 0
    waiting.cancel()


# --- no job holds up another


async def test_a_read_without_an_answer_delays_no_other_job(scene):
    stuck, other, later = (scene.vertex.add(number, RUNNING) for number in (1, 2, 3))
    waits = {name: scene.wait(name) for name in (stuck, other, later)}
    await scene.step()
    scene.vertex.unreadable.add(stuck)
    scene.finish(stuck)
    scene.finish(other)
    await scene.clock.step()
    assert (await finished(waits[other])).is_terminal
    scene.finish(later)
    for _ in range(3):
        await scene.clock.step()
    assert (await finished(waits[later])).is_terminal
    assert scene.vertex.calls["GetCustomJob"] == 3, "one look at a job at a time"
    assert not waits[stuck].done()
    waits[stuck].cancel()


async def test_a_listener_that_hangs_delays_its_own_wait_alone_and_hears_all_in_order(scene):
    heard: list[str] = []
    go_on = asyncio.Event()

    async def slow(job: JobRecord) -> None:
        await go_on.wait()
        heard.append(job.launch_state.value)

    name, other = scene.vertex.add(1, JobState.JOB_STATE_QUEUED), scene.vertex.add(2, RUNNING)
    slowed = asyncio.create_task(scene.watcher.wait(name, slow))
    waiting, still_running = scene.wait(other), scene.wait(scene.vertex.add(3, RUNNING))
    await scene.step()
    scene.vertex.jobs[name].state = RUNNING
    await scene.step()
    scene.finish(name)
    scene.finish(other)
    await scene.step()
    assert (await finished(waiting)).is_terminal
    assert heard == []
    reads = scene.vertex.calls["GetCustomJob"]
    await scene.step()
    assert scene.vertex.calls["GetCustomJob"] == reads, "a job that has ended is not read again"
    go_on.set()
    assert (await slowed).launch_state is LaunchState.SUCCEEDED
    assert heard == ["queued", "running", "succeeded"]
    still_running.cancel()


async def test_a_job_that_is_listed_again_is_not_read_any_more(scene):
    names = [scene.vertex.add(number, RUNNING) for number in range(LOOKS_AT_ONCE + 12)]
    waits = [scene.wait(name) for name in names]
    listed, scene.vertex.listed = scene.vertex.listed, lambda job: False
    scene.vertex.unreadable.update(names)
    await scene.clock.step()
    scene.vertex.listed = listed
    for _ in range(3):
        await scene.clock.step()
    for wait in waits[:LOOKS_AT_ONCE]:
        wait.cancel()
    await scene.step()
    assert scene.vertex.calls["GetCustomJob"] == LOOKS_AT_ONCE
    for wait in waits:
        wait.cancel()


async def test_only_a_few_jobs_are_read_at_once(scene):
    names = [scene.vertex.add(number, RUNNING) for number in range(20)]
    waits = [scene.wait(name) for name in names]
    scene.vertex.listed = lambda job: False
    scene.vertex.unreadable.update(names)
    for _ in range(3):
        await scene.clock.step()
    assert len(looks()) == LOOKS_AT_ONCE == 8
    for wait in waits:
        wait.cancel()


@pytest.mark.parametrize("is_listed", [True, False])
async def test_a_time_that_nobody_can_read_harms_no_job(scene, is_listed):
    broken, other = scene.vertex.add(1, RUNNING), scene.vertex.add(2, RUNNING)
    waits = [scene.wait(broken), scene.wait(other)]
    scene.vertex.listed = lambda job: is_listed
    type(scene.vertex.jobs[broken]).pb(scene.vertex.jobs[broken]).create_time.seconds = 10**15
    scene.finish(other)
    await scene.step()
    assert (await waits[1]).is_terminal
    assert not waits[0].done()
    scene.vertex.jobs[broken].state = SUCCEEDED
    await scene.step()
    assert (await waits[0]).create_time is None


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(scene):
    async def hang(_job: JobRecord) -> None:
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    unread, unheard = scene.vertex.add(1, RUNNING), scene.vertex.add(2, RUNNING)
    scene.vertex.listed = lambda job: job.name == unheard
    scene.vertex.unreadable.add(unread)
    waits = [scene.wait(unread), asyncio.create_task(scene.watcher.wait(unheard, hang))]
    await scene.clock.step()
    assert len(looks()) == 1
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    await let_others_run()
    assert scene.watcher.watching == 0
    assert [task for task in asyncio.all_tasks() - before if "JobWatcher" in repr(task)] == []


async def test_a_look_for_two_waits_goes_on_when_one_of_them_ends(scene):
    name = scene.vertex.add(1, RUNNING)
    scene.vertex.listed = lambda job: False
    scene.vertex.unreadable.add(name)
    first, second = scene.wait(name), scene.wait(name)
    await scene.clock.step()
    first.cancel()
    await let_others_run()
    assert len(looks()) == 1
    second.cancel()
    await let_others_run()
    assert looks() == []


async def test_a_watcher_that_ends_takes_its_looks_along_and_the_next_one_goes_on(scene):
    names = [scene.vertex.add(number, RUNNING) for number in range(LOOKS_AT_ONCE + 1)]
    waits = [scene.wait(name) for name in names]
    scene.vertex.listed = lambda job: False
    scene.vertex.unreadable.update(names)
    await scene.clock.step()
    assert len(looks()) == LOOKS_AT_ONCE
    scene.loop.cancel()
    await asyncio.wait([scene.loop])
    assert looks() == []
    scene.vertex.unreadable.clear()
    for name in names:
        scene.finish(name)
    scene.clock.asleep.clear()
    scene.loop = asyncio.create_task(scene.watcher.run())
    async with asyncio.timeout(HANG_SECONDS):
        assert all(job.is_terminal for job in await asyncio.gather(*waits))
