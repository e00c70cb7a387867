"""What reaches Vertex AI in a storm, in virtual time: how many calls, and when."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from random import Random

from google.api_core import exceptions as google

from prefect_vertex_launch.core.errors import OverQuota
from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.core.labels import ITEM_LABEL
from prefect_vertex_launch.core.vertex_types import CustomJob, JobState
from prefect_vertex_launch.vertex.call_budget import CALLS_PER_MINUTE, SUBMISSIONS_PER_MINUTE
from prefect_vertex_launch.vertex.item_finder import ITEMS_PER_LIST, ItemFinder
from prefect_vertex_launch.vertex.job_watcher import JobWatcher
from prefect_vertex_launch.vertex.jobs import VertexJobs
from tests.adapters.modelled_vertex import (
    LoopClock,
    ModelledVertex,
    in_virtual_time,
    most_in_a_window,
    served_by,
)

RUNNING, SUCCEEDED = JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_SUCCEEDED
QUEUE = QueueIdentity("api.wandb.ai", "acme", "vertex")
RATE = "Quota exceeded for quota metric 'Job or LRO submission requests'"


def open_jobs(project: str = "p") -> VertexJobs:
    return VertexJobs(
        project=project, location="us-central1", endpoint="grpc://vertex", clock=LoopClock(), random=Random(1)
    )


@contextlib.asynccontextmanager
async def watching(jobs: VertexJobs, queue: str = "q") -> AsyncIterator[JobWatcher]:
    watcher = JobWatcher(jobs, labels={"launch-queue": queue}, interval_seconds=10, clock=LoopClock())
    loop = asyncio.create_task(watcher.run())
    try:
        yield watcher
    finally:
        loop.cancel()


def add_items(vertex: ModelledVertex, count: int, **labels: str) -> dict[str, str]:
    """Add a running job for each of so many items; return the jobs' names by launch key."""
    keys = [QUEUE.item_key(f"item {number}") for number in range(count)]
    labels = {"launch-queue": "q", **labels}
    return {
        key: vertex.add(number + 1, RUNNING, **{ITEM_LABEL: key}, **labels) for number, key in enumerate(keys)
    }


# --- recovery


def test_a_restart_finds_a_thousand_live_jobs_within_a_minute_by_34_lists():
    vertex = ModelledVertex()

    async def main() -> float:
        names = add_items(vertex, 1000)
        finder = ItemFinder(open_jobs(), clock=LoopClock())
        found = await asyncio.gather(*(finder.find(key) for key in names))
        assert [[job.name for job in jobs] for jobs in found] == [[name] for name in names.values()]
        return asyncio.get_running_loop().time()

    with served_by(vertex):
        assert in_virtual_time(main()) < 60
    assert vertex.calls == {"list": 34}


def test_a_restart_whose_launches_come_one_by_one_stays_within_the_budget_beside_the_watcher():
    vertex = ModelledVertex()

    async def main() -> float:
        names = add_items(vertex, 1000)
        jobs = open_jobs()
        finder = ItemFinder(jobs, clock=LoopClock())
        async with watching(jobs) as watcher:
            attached: list[asyncio.Task[object]] = []

            async def attach(key: str) -> None:
                (job,) = await finder.find(key)
                attached.append(asyncio.create_task(watcher.wait(job.name)))

            async with asyncio.TaskGroup() as group:
                for key in names:
                    group.create_task(attach(key))
                    await asyncio.sleep(0.04)
            seconds = asyncio.get_running_loop().time()
            assert watcher.watching == 1000
            for task in attached:
                task.cancel()
        return seconds

    with served_by(vertex):
        assert in_virtual_time(main()) < 60
    assert sum(ITEM_LABEL in selection for selection in vertex.filters) < 90
    assert most_in_a_window(vertex.times()) <= CALLS_PER_MINUTE


def test_a_create_that_has_its_turn_waits_no_more_and_what_was_listed_meanwhile_is_fresh():
    vertex = ModelledVertex()

    async def main() -> tuple[float, float]:
        jobs, loop = open_jobs(), asyncio.get_running_loop()
        await asyncio.gather(*(jobs.list("") for _ in range(CALLS_PER_MINUTE)))
        turn = await jobs.turn_to_create()
        await jobs.list("")
        listed_at = loop.time()
        await jobs.create(CustomJob(display_name="x"), turn=turn)
        return turn, loop.time() - listed_at

    with served_by(vertex):
        turn, age_seconds = in_virtual_time(main())
    assert turn >= 60
    assert age_seconds < 1


def test_a_thousand_new_items_are_submitted_at_the_rate_that_is_allowed_and_their_jobs_are_seen_to_end():
    vertex = ModelledVertex()

    async def main() -> list[float]:
        jobs = open_jobs()
        finder = ItemFinder(jobs, clock=LoopClock())
        loop = asyncio.get_running_loop()
        waits: list[float] = []

        async def launch(watcher: JobWatcher, key: str) -> None:
            assert await finder.find(key) == ()
            labels = {ITEM_LABEL: key, "launch-queue": "q"}
            job = await jobs.create(CustomJob(display_name="x", labels=labels))
            await asyncio.sleep(45)
            vertex.jobs[job.name].state = SUCCEEDED
            ended_at = loop.time()
            assert (await watcher.wait(job.name)).is_terminal
            waits.append(loop.time() - ended_at)

        async with watching(jobs) as watcher, asyncio.TaskGroup() as group:
            for number in range(1000):
                group.create_task(launch(watcher, QUEUE.item_key(str(number))))
        return waits

    with served_by(vertex):
        waits = in_virtual_time(main())
    created = vertex.times("create")
    assert len(created) == len(waits) == 1000
    assert most_in_a_window(created) == SUBMISSIONS_PER_MINUTE
    assert created[-1] < 20 * 60
    assert most_in_a_window(vertex.times()) <= CALLS_PER_MINUTE
    assert max(waits) < 30, "that a job has ended is noticed in time although creates are in line"


def test_a_wrong_list_costs_no_more_than_the_budget_and_hides_no_end():
    vertex = ModelledVertex()

    async def main() -> float:
        names = add_items(vertex, 1000, **{"launch-queue": "lost"})
        standing = list(names.values())
        jobs = open_jobs()
        async with watching(jobs) as watcher:
            waits = [asyncio.create_task(watcher.wait(name)) for name in names.values()]
            await asyncio.sleep(300)
            lists = [time for time in vertex.times("list") if time > 60]
            for name in names.values():
                vertex.jobs[name].state = SUCCEEDED
            cancel_at = asyncio.get_running_loop().time()
            await jobs.cancel("projects/p/locations/us-central1/customJobs/1")
            assert asyncio.get_running_loop().time() - cancel_at < 60
            await asyncio.gather(*waits)
            assert vertex.read[:1000] == standing, "who has stood longest in line is first"
            assert max(later - before for before, later in itertools.pairwise(lists)) < 75
        return asyncio.get_running_loop().time()

    with served_by(vertex):
        assert in_virtual_time(main()) < 300 + 5 * 60
    assert most_in_a_window(vertex.times()) <= CALLS_PER_MINUTE


def test_queues_of_one_project_and_region_share_the_budget_and_other_projects_have_their_own():
    vertex = ModelledVertex()

    async def storm(jobs: VertexJobs) -> None:
        await asyncio.gather(*(jobs.create(CustomJob(display_name="x")) for _ in range(40)))

    async def main(*projects: str) -> float:
        await asyncio.gather(*(storm(open_jobs(project)) for project in projects))
        return asyncio.get_running_loop().time()

    with served_by(vertex):
        assert in_virtual_time(main("p", "p")) > 60
        assert most_in_a_window(vertex.times("create")) == SUBMISSIONS_PER_MINUTE
        assert in_virtual_time(main("p", "another")) < 1


def test_who_comes_back_within_the_minute_does_not_start_anew():
    vertex = ModelledVertex()

    async def main() -> None:
        for _ in range(3):
            async with contextlib.aclosing(open_jobs()) as jobs:
                await asyncio.gather(*(jobs.create(CustomJob(display_name="x")) for _ in range(30)))

    with served_by(vertex):
        in_virtual_time(main())
    assert most_in_a_window(vertex.times("create")) == SUBMISSIONS_PER_MINUTE


def test_waiting_for_the_budget_is_no_failure_and_not_counted_against_the_deadline():
    vertex = ModelledVertex()

    async def main() -> None:
        jobs = VertexJobs(
            project="p", location="us-central1", endpoint="grpc://vertex", clock=LoopClock(),
            timeout_seconds=1, create_timeout_seconds=1,
        )  # fmt: skip
        await asyncio.gather(*(jobs.create(CustomJob(display_name="x")) for _ in range(120)))
        assert jobs.calls == {"create": 120}

    with served_by(vertex):
        in_virtual_time(main())
    assert len(vertex.jobs) == 120


# --- when Vertex AI says that it is too much


def test_a_quota_that_others_use_up_too_slows_everyone_down_until_it_fits():
    vertex = ModelledVertex()

    def too_many(method: str, _request: object) -> Exception | None:
        now = asyncio.get_running_loop().time()
        recent = [time for time in vertex.times("create") if time > now - 60]
        return google.TooManyRequests(RATE) if method == "create" and len(recent) > 20 else None

    vertex.failure = too_many
    refused = 0

    async def main() -> None:
        async def submit(jobs: VertexJobs) -> None:
            nonlocal refused
            while True:
                try:
                    await jobs.create(CustomJob(display_name="x"))
                except OverQuota:
                    refused += 1
                    await asyncio.sleep(30)
                else:
                    return

        each = [open_jobs(), open_jobs()]
        await asyncio.gather(*(submit(jobs) for jobs in each for _ in range(150)))

    with served_by(vertex):
        in_virtual_time(main())
    times = vertex.times("create")
    assert len(vertex.jobs) == 300
    assert most_in_a_window([time for time in times if time > 120]) < 40
    assert refused < 150


def test_a_quota_of_machines_slows_nothing_down():
    vertex = ModelledVertex()
    message = (
        "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_training_x"
    )
    vertex.failure = lambda method, _: google.TooManyRequests(message) if method == "create" else None

    async def main() -> float:
        jobs = open_jobs()
        for _ in range(SUBMISSIONS_PER_MINUTE):
            with contextlib.suppress(OverQuota):
                await jobs.create(CustomJob(display_name="x"))
        return asyncio.get_running_loop().time()

    with served_by(vertex):
        assert in_virtual_time(main()) < 60


# --- the item finder


def test_each_asker_gets_its_own_jobs_of_every_attempt_and_only_those():
    vertex = ModelledVertex()

    async def main() -> None:
        keys = list(add_items(vertex, 40))
        vertex.add(99, SUCCEEDED, **{ITEM_LABEL: keys[3]})
        vertex.add(100, SUCCEEDED, **{ITEM_LABEL: "stranger"})
        finder = ItemFinder(open_jobs(), clock=LoopClock())
        asked = [*keys, keys[3], QUEUE.item_key("no job")]
        found = await asyncio.gather(*(finder.find(key) for key in asked))
        for key, jobs in zip(asked, found, strict=True):
            assert {job.labels[ITEM_LABEL] for job in jobs} <= {key}
            assert len(jobs) == (2 if key == keys[3] else key in keys)

    with served_by(vertex):
        in_virtual_time(main())
    assert len(vertex.filters) == 2


def test_a_filter_for_as_many_items_as_fit_stays_short():
    terms = [f'labels.{ITEM_LABEL}="{QUEUE.item_key(str(number))}"' for number in range(ITEMS_PER_LIST)]
    assert len(" OR ".join(terms)) < 2048


def test_an_answer_is_of_a_list_that_began_after_the_question():
    vertex = ModelledVertex(delay_seconds=5)
    key = QUEUE.item_key("item")

    async def main() -> None:
        finder = ItemFinder(open_jobs(), clock=LoopClock())
        early = asyncio.create_task(finder.find(key))
        await asyncio.sleep(1)
        vertex.add(1, RUNNING, **{ITEM_LABEL: key})
        late = asyncio.create_task(finder.find(key))
        assert (await early, len(await late)) == ((), 1)

    with served_by(vertex):
        in_virtual_time(main())


def test_a_question_alone_is_sent_at_once_and_nothing_runs_when_all_are_answered():
    async def main() -> float:
        finder = ItemFinder(open_jobs(), clock=LoopClock())
        await finder.find(QUEUE.item_key("item"))
        seconds = asyncio.get_running_loop().time()
        await asyncio.sleep(10)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return seconds

    with served_by(ModelledVertex(delay_seconds=0.3)):
        assert round(in_virtual_time(main()), 6) == 0.3


def test_a_list_without_an_answer_holds_up_only_those_it_is_for():
    vertex = ModelledVertex()
    answer = vertex._answer

    async def stuck(method: str, request: object) -> None:
        if "stuck" in request.filter:  # type: ignore[attr-defined]
            await asyncio.sleep(3600)
        await answer(method, request)

    vertex._answer = stuck

    async def main() -> None:
        finder = ItemFinder(open_jobs(), clock=LoopClock())
        waiting = [asyncio.create_task(finder.find("stuck"))]
        await asyncio.sleep(1)
        for number in range(50):
            await finder.find(QUEUE.item_key(str(number)))
        assert asyncio.get_running_loop().time() < 60
        assert not waiting[0].done()
        waiting[0].cancel()
        await finder.aclose()

    with served_by(vertex):
        in_virtual_time(main())


def test_a_failed_list_fails_its_askers_and_the_next_one_is_answered():
    vertex = ModelledVertex()
    vertex.failure = lambda *_: google.Forbidden("no")

    async def main() -> None:
        keys = list(add_items(vertex, 3))
        finder = ItemFinder(open_jobs(), clock=LoopClock())
        errors = await asyncio.gather(*(finder.find(key) for key in keys), return_exceptions=True)
        assert [type(error).__name__ for error in errors] == ["PermissionDenied"] * 3
        vertex.failure = lambda *_: None
        assert len(await finder.find(keys[0])) == 1

    with served_by(vertex):
        in_virtual_time(main())


def test_a_filter_that_vertex_ai_finds_too_long_is_halved_until_it_fits():
    vertex = ModelledVertex()
    vertex.failure = lambda _, request: (
        google.InvalidArgument("the filter is too long") if len(request.filter) > 500 else None
    )

    async def main() -> None:
        names = add_items(vertex, 100)
        finder = ItemFinder(open_jobs(), clock=LoopClock())
        found = await asyncio.gather(*(finder.find(key) for key in names))
        assert [[job.name for job in jobs] for jobs in found] == [[name] for name in names.values()]

    with served_by(vertex):
        in_virtual_time(main())
    assert vertex.calls["list"] < 30


def test_who_asks_no_more_is_not_asked_for():
    vertex = ModelledVertex()

    async def main() -> None:
        keys = list(add_items(vertex, 2))
        finder = ItemFinder(open_jobs(), clock=LoopClock())
        leaves = asyncio.create_task(finder.find(keys[0]))
        stays = asyncio.create_task(finder.find(keys[1]))
        await asyncio.sleep(0)
        leaves.cancel()
        assert len(await stays) == 1
        assert keys[0] not in vertex.filters[0]

    with served_by(vertex):
        in_virtual_time(main())
