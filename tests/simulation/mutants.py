"""The agent's code broken on purpose, in one place at a time: each is something the proof has to notice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from prefect_vertex_launch.agent import adoption
from prefect_vertex_launch.agent.queue_worker import QueueWorker
from prefect_vertex_launch.coordination import heartbeat, launch_store
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.core import duplicates, states
from prefect_vertex_launch.core.diagnosis import Category
from prefect_vertex_launch.core.duplicates import Surplus
from prefect_vertex_launch.core.errors import LaunchError, OutcomeUnknown, Permanent, Problem, Refused
from prefect_vertex_launch.core.retry_policy import Attempt, Policy, by_attempt
from prefect_vertex_launch.core.states import JobRecord, LaunchState
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.jobspec import job_fields
from prefect_vertex_launch.launch import attempts, claim, find_jobs, report, stop_requests, submit
from prefect_vertex_launch.launch.item import QueueItem, run_of
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.outage import Outages
from prefect_vertex_launch.vertex import job_watcher
from prefect_vertex_launch.vertex.job_watcher import JobWatcher
from prefect_vertex_launch.wandb.queue import PoppedItem
from tests.simulation.mutant import LATE_SECONDS, Deaths, Gaps, Play, Seed, do_nothing, noticed_by
from tests.simulation.simulate import Change


async def _say_done(*_: Any, **__: Any) -> str:
    return "done"


async def _find_nobody(*_: Any) -> set[Any]:
    return set()


@noticed_by(Play("poison, and a good one behind it"), 9)
def poison_delays_others(patch: pytest.MonkeyPatch) -> None:
    """After an item that cannot be launched nothing is taken for an hour."""
    begin = QueueWorker._begin

    async def begin_and_pause(self: QueueWorker, popped: PoppedItem, slot: Slot) -> None:
        await begin(self, popped, slot)
        if popped.item_id in self._supervisor._tasks:
            await asyncio.wait({self._supervisor._tasks[popped.item_id]}, timeout=5.0)
            if popped.item_id not in self._supervisor._tasks:
                await self._clock.sleep(3600.0)

    patch.setattr(QueueWorker, "_begin", begin_and_pause)


@noticed_by(Play("happy"), 1)
def item_acknowledged_before_its_flow_run(patch: pytest.MonkeyPatch) -> None:
    """An item is acknowledged at W&B before it is in any book."""
    begin = QueueWorker._begin

    async def acknowledge_and_begin(self: QueueWorker, popped: PoppedItem, slot: Slot) -> None:
        item = QueueItem.from_popped(popped)
        run = run_of(item.require_spec(), item.item_id)
        await self.context.wandb.acknowledge(item.item_id, run.run_id)
        await begin(self, popped, slot)

    patch.setattr(QueueWorker, "_begin", acknowledge_and_begin)


@noticed_by(Seed(5), 1, 2, 5, 13)
def flow_run_without_a_key(patch: pytest.MonkeyPatch) -> None:
    """An item that comes a second time gets a second flow run."""
    create = launch_store.FlowRunCreate

    def with_random_key(**fields: Any) -> Any:
        return create(**{**fields, "idempotency_key": uuid4().hex})

    patch.setattr(launch_store, "FlowRunCreate", with_random_key)


@noticed_by(Seed(2541), 5, 2, 10)
def settled_launch_begun_again(patch: pytest.MonkeyPatch) -> None:
    """A launch that has an outcome is taken for one that goes on."""
    patch.setattr(launch_store, "_is_settled", lambda _: False)


@noticed_by(Seed(3), 2)
def no_look_before_a_create(patch: pytest.MonkeyPatch) -> None:
    """A job is created without a look for one that is there already."""

    async def look_away(launch: Launch) -> None:
        launch.looked_in, launch.looked_at = find_jobs.own_parents(launch), launch.context.clock.monotonic()

    patch.setattr(find_jobs, "find", look_away)


@noticed_by(Seed(3), 2)
def label_differs_each_time(patch: pytest.MonkeyPatch) -> None:
    """The label by which a job is found again does not follow from the item."""
    patch.setattr(job_fields.JobFields, "_item_key", property(lambda _: uuid4().hex))


@noticed_by(Seed(3), 2, 10)
def unknown_outcome_taken_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    """A create without an answer counts as refused, and nobody looks again."""
    create = submit._create_attempt

    async def create_once(launch: Launch) -> JobRecord | None:
        try:
            return await create(launch)
        except OutcomeUnknown as error:
            raise Refused(Problem("create", str(error))) from error

    patch.setattr(find_jobs, "find_later", do_nothing)
    patch.setattr(submit, "_create_attempt", create_once)


@noticed_by(Seed(2), 10)
def outage_taken_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    """An outage that outlasts the retries of a step ends the launch."""

    async def refuse(self: Outages, error: Exception) -> None:
        self._launch.refusal = Permanent(Problem("a step", str(error)))

    patch.setattr(Outages, "sit_out", refuse)


@noticed_by(Deaths("long", LATE_SECONDS), 2)
def duplicate_never_cancelled(patch: pytest.MonkeyPatch) -> None:
    """Two live jobs of one attempt both run on."""
    for module in (find_jobs, job_watcher):
        patch.setattr(module, "surplus", lambda *_: None)


@noticed_by(Deaths("long", LATE_SECONDS), 2)
def duplicate_cancelled_late(patch: pytest.MonkeyPatch) -> None:
    """Of two live jobs of one attempt the one too many is cancelled when it is nine minutes old."""
    surplus = duplicates.surplus

    def late(jobs: Iterable[JobRecord]) -> Surplus | None:
        too_many = surplus(jobs)
        if too_many is None or too_many.job.create_time is None or too_many.job.update_time is None:
            return None
        age = too_many.job.update_time - too_many.job.create_time
        return too_many if age.total_seconds() > 540.0 else None

    for module in (find_jobs, job_watcher):
        patch.setattr(module, "surplus", late)


@noticed_by(Seed(12), 2)
def looked_for_only_at_once(patch: pytest.MonkeyPatch) -> None:
    """The job of a create without an answer is looked for at once, and not a second time."""
    patch.setattr(find_jobs, "LOOK_AGAIN_SECONDS", (0.0,))


@noticed_by(Deaths("cancelled at once", LATE_SECONDS), 2)
def no_last_looks(patch: pytest.MonkeyPatch) -> None:
    """A launch that is ended before a job is seen does not look for one that comes to light late."""
    patch.setattr(find_jobs, "LAST_LOOKS_SECONDS", ())


@noticed_by(Seed(1), 2)
def old_look_taken_for_new(patch: pytest.MonkeyPatch) -> None:
    """A job is created however long ago others were looked for."""
    patch.setattr(submit, "STALE_SECONDS", float("inf"))


@noticed_by(Deaths("long", LATE_SECONDS), 2)
def older_duplicate_cancelled(patch: pytest.MonkeyPatch) -> None:
    """Of two live jobs of one attempt the older one goes."""

    def oldest(jobs: Sequence[JobRecord]) -> Surplus | None:
        live = sorted((job for job in jobs if not job.is_terminal), key=duplicates.age)
        if len(live) < 2 or live[0].launch_state is LaunchState.CANCELLING:
            return None
        return Surplus(live[0], "it is the oldest")

    for module in (find_jobs, job_watcher):
        patch.setattr(module, "surplus", oldest)


@noticed_by(Deaths("long", LATE_SECONDS), 6)
def younger_duplicate_speaks(patch: pytest.MonkeyPatch) -> None:
    """Of two jobs of one attempt the end of the younger one is reported."""

    def youngest(jobs: Sequence[JobRecord]) -> list[JobRecord]:
        return [max(attempt, key=duplicates.age) for attempt in by_attempt(jobs).values()]

    patch.setattr(attempts, "ended_of", youngest)


@noticed_by(Deaths("long", LATE_SECONDS), 2)
def first_end_is_the_last_word(patch: pytest.MonkeyPatch) -> None:
    """A job's end is its launch's, without a look for another job of the attempt."""

    async def watched(launch: Launch) -> JobRecord | None:
        return launch.job

    patch.setattr(find_jobs, "find_last_word", watched)


@noticed_by(Deaths("happy", change=Change.REGION), 2)
def parents_not_recorded(patch: pytest.MonkeyPatch) -> None:
    """A launch is looked for only where the queue sends its jobs by now."""
    patch.setattr(adoption, "parents_of", lambda _: frozenset())


@noticed_by(Deaths("happy", change=Change.LOCKS), 2)
def left_jobs_left(patch: pytest.MonkeyPatch) -> None:
    """An item that cannot be launched any more is refused, whatever runs for it already."""
    patch.setattr(find_jobs, "find_left_job", do_nothing)


@noticed_by(Seed(338), 10)
def refused_at_wandb_for_good(patch: pytest.MonkeyPatch) -> None:
    """Somebody whom W&B denies the queue for a while takes that for the item's fault."""
    patch.setattr(claim, "waiting_if_denied", nullcontext)


@noticed_by(Seed(3), 10)
def never_adopted(patch: pytest.MonkeyPatch) -> None:
    """What another agent has left is left for good."""

    async def none(*_: Any) -> list[FlowRun]:
        return []

    patch.setattr(LaunchStore, "find_orphans", none)


@noticed_by(Seed(6), 1, 2, 6)
def other_agents_taken_for_gone(patch: pytest.MonkeyPatch) -> None:
    """Launches are adopted from agents that are at work."""
    patch.setattr(heartbeat.AgentObserver, "at_work", _find_nobody)


@noticed_by(Seed(0), 10)
def silent_agents_never_gone(patch: pytest.MonkeyPatch) -> None:
    """An agent whose heartbeat stands still is waited for, for ever."""
    patch.setattr(heartbeat, "GONE_SECONDS", float("inf"))


@noticed_by(Gaps("preempted once"), 1, 2, 6)
def gone_before_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """Launches are adopted from an agent that cannot know yet that it is taken for gone."""
    patch.setattr(heartbeat, "GONE_SECONDS", 20.0)


@noticed_by(Seed(183), 1, 2, 5, 6)
def never_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """An agent that was cut off from Prefect believes that its launches are its own."""
    patch.setattr(heartbeat, "DOUBT_SECONDS", float("inf"))


@noticed_by(Seed(526), 1, 2, 6)
def launches_of_others_kept(patch: pytest.MonkeyPatch) -> None:
    """An agent that was taken for gone goes on with what is another one's."""
    patch.setattr(QueueWorker, "let_go_of_others", do_nothing)


@noticed_by(Seed(3), 8)
def hand_over_cancels_jobs(patch: pytest.MonkeyPatch) -> None:
    """An agent that ends cancels the jobs of its launches."""
    hand_over = QueueWorker.hand_over

    async def cancel_and_hand_over(self: QueueWorker) -> None:
        for launch in [launch for launch in self.context.live.values() if launch.job is not None]:
            await (await self.context.regions.of(launch.job.name)).jobs.cancel(launch.job.name)
        await hand_over(self)

    patch.setattr(QueueWorker, "hand_over", cancel_and_hand_over)


@noticed_by(Seed(7), 2, 6)
def failed_read_taken_for_an_end(patch: pytest.MonkeyPatch) -> None:
    """A job that cannot be read counts as gone."""

    async def look(self: JobWatcher, key: str) -> None:
        name = f"{self.jobs.parent}/customJobs/{key}"
        try:
            job = await self.jobs.get(name, attempts=1)
        except LaunchError:
            job = JobRecord(name, JobState.JOB_STATE_UNSPECIFIED, is_gone=True)
        self._tell(key, job)

    patch.setattr(JobWatcher, "_look", look)


@noticed_by(Play("happy"), 2, 6)
def absence_from_a_list_taken_for_an_end(patch: pytest.MonkeyPatch) -> None:
    """A job that is not among those listed counts as gone."""

    async def look(self: JobWatcher, key: str) -> None:
        name = f"{self.jobs.parent}/customJobs/{key}"
        self._tell(key, JobRecord(name, JobState.JOB_STATE_UNSPECIFIED, is_gone=True))

    patch.setattr(JobWatcher, "_look", look)


@noticed_by(Seed(2), 2, 6)
def unknown_state_taken_for_an_end(patch: pytest.MonkeyPatch) -> None:
    """A job in a state that nobody here knows counts as failed."""

    def state_of_job(state: int) -> LaunchState:
        return {int(known): launch for known, launch in states.STATE_OF_JOB.items()}.get(
            int(state), LaunchState.FAILED
        )

    patch.setattr(states, "state_of_job", state_of_job)


@noticed_by(Play("program fails"), 6)
def end_not_reported(patch: pytest.MonkeyPatch) -> None:
    """W&B is not told how a launch ended."""
    patch.setattr(report, "report", _say_done)


@noticed_by(Play("poison, and a good one behind it"), 6)
def refusal_not_reported(patch: pytest.MonkeyPatch) -> None:
    """W&B is not told that an item cannot be launched."""
    said = report.report

    async def say_done_of_refusals(launch: Launch) -> str:
        return await (said(launch) if launch.refusal is None else _say_done())

    patch.setattr(report, "report", say_done_of_refusals)


@noticed_by(Seed(1), 6)
def missing_run_not_reported(patch: pytest.MonkeyPatch) -> None:
    """A job that succeeded without a run at W&B counts as a success."""

    async def shows_up(*_: Any) -> bool:
        return True

    patch.setattr(report, "_run_shows_up", shows_up)


@noticed_by(Play("preempted once"), 10)
def never_launched_again(patch: pytest.MonkeyPatch) -> None:
    """A run that was preempted is over."""
    patch.setattr(attempts, "_policy", lambda launch: Policy(0, launch.plans))


@noticed_by(Seed(0), 10)
def launched_again_without_end(patch: pytest.MonkeyPatch) -> None:
    """A run that is preempted is launched again as often as that happens."""
    patch.setattr(attempts, "_policy", lambda launch: Policy(1_000_000, launch.plans))


@noticed_by(Seed(0), 10)
def earlier_attempts_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Only the last attempt counts when it is decided whether another one follows."""
    categories = attempts._categories

    def last(launch: Launch, ended: Sequence[JobRecord]) -> list[Category]:
        return categories(launch, ended[-1:])

    patch.setattr(attempts, "_categories", last)


@noticed_by(Play("preempted once"), 2, 10)
def attempt_number_stays(patch: pytest.MonkeyPatch) -> None:
    """Every attempt of a run is its first."""
    following = attempts.next_attempt

    def first(ended: Sequence[Category], policy: Policy) -> Attempt | None:
        attempt = following(ended, policy)
        return attempt and Attempt(1, attempt.plan)

    patch.setattr(attempts, "next_attempt", first)


@noticed_by(Play("cancelled in Prefect"), 7, 10)
def cancel_in_prefect_ignored(patch: pytest.MonkeyPatch) -> None:
    """Prefect is not asked who cancelled a launch."""
    patch.setattr(stop_requests, "_ask_prefect", do_nothing)


@noticed_by(Play("stopped at W&B"), 7, 10)
def stop_at_wandb_ignored(patch: pytest.MonkeyPatch) -> None:
    """W&B is not asked who stopped a run."""
    patch.setattr(stop_requests, "_ask_wandb", do_nothing)


@noticed_by(Seed(0), 7, 10)
def cancel_forgotten_at_adoption(patch: pytest.MonkeyPatch) -> None:
    """Whoever adopts a launch that was cancelled in Prefect does not know of it."""

    async def is_to_end(*_: Any) -> bool:
        return False

    patch.setattr(LaunchStore, "_is_to_end", is_to_end)
