"""The real code, broken on purpose in one place at a time: what the simulation has to notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from pytest import MonkeyPatch  # noqa: PT013 - this module is not a test

from flows import attempts, course, launch_runs, queue_server, regions, standing, steps, stops
from flows.launch_runs import LaunchRuns
from flows.live_launch import LiveLaunch
from flows.queue_item import QueueItem, run_of
from flows.queue_server import QueueServer
from flows.session import LaunchSession
from flows.slots import Slot, Slots
from vertex_launch import job_watcher, lifecycle
from vertex_launch import render as rendering
from vertex_launch.errors import LaunchError, OutcomeUnknown, Problem, Refused
from vertex_launch.job_watcher import JobWatcher
from vertex_launch.lifecycle import Cancel, JobRecord
from vertex_launch.run_spec import parse_run_spec
from vertex_launch.second_chances import Attempt, Policy

Break = Callable[[MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    what: str
    apply: Break
    noticed_by: str | int | None


MUTANTS: dict[str, Mutant] = {}


def mutant(noticed_by: Any = None) -> Callable[[Break], Break]:
    def add(apply: Break) -> Break:
        MUTANTS[apply.__name__] = Mutant(apply.__doc__ or "", apply, noticed_by)
        return apply

    return add


async def _nothing(*_: Any, **__: Any) -> None:
    pass


async def _set(*_: Any, **__: Any) -> set[Any]:
    return set()


@mutant()
def no_list_before_create(patch):
    async def find(*_):
        return None

    patch.setattr(attempts, "find", find)


@mutant()
def no_list_when_adopted(patch):
    """only the first look in submit is skipped"""
    real = attempts.find

    async def submit_find(session, live):
        return None

    async def look_again(session, live):
        attempt = live.attempt
        job = await real(session, live)
        if job is None and live.attempt.number == attempt.number:
            live.attempt = attempt
        return job

    patch.setattr(attempts, "find", submit_find)
    patch.setattr(attempts, "_look_again", look_again)


@mutant()
def ack_first(patch):
    real = QueueServer._begin

    async def begin(self, popped, slot):
        item = QueueItem.from_popped(popped)
        run = run_of(parse_run_spec(item.payload, item_id=item.item_id), item.item_id)
        await self.session.wandb.acknowledge(item.item_id, run.run_id)
        return await real(self, popped, slot)

    patch.setattr(QueueServer, "_begin", begin)


@mutant()
def slots_always_granted(patch):
    async def try_take(self):
        slot = Slot(UUID(int=0))
        self._slots[slot] = None
        return slot

    patch.setattr(Slots, "try_take", try_take)


@mutant()
def slot_never_released(patch):
    patch.setattr(Slots, "release", _nothing)


@mutant()
def slot_not_given_back(patch):
    patch.setattr(Slots, "_give_back", _nothing)


@mutant()
def slot_released_at_submit(patch):
    real = steps.submit

    async def submit(session, live):
        name = await real(session, live)
        live.job_ended.set()
        return name

    patch.setattr(steps, "submit", submit)


@mutant()
def no_look_after_unknown(patch):
    async def later(*_):
        return None

    patch.setattr(attempts, "find_later", later)


@mutant()
def unknown_is_refusal(patch):
    real = attempts._create

    async def create(session, live):
        try:
            return await real(session, live)
        except OutcomeUnknown as error:
            raise Refused(Problem("x", str(error))) from error

    patch.setattr(attempts, "_create", create)


@mutant()
def unknown_is_no_job(patch):
    async def later(*_):
        return None

    real = attempts._create

    async def create(session, live):
        try:
            return await real(session, live)
        except OutcomeUnknown as error:
            raise Refused(Problem("x", str(error))) from error

    patch.setattr(attempts, "find_later", later)
    patch.setattr(attempts, "_create", create)


@mutant()
def colleagues_always_gone(patch):
    patch.setattr(standing.Colleagues, "at_work", _set)


@mutant()
def colleagues_never_gone(patch):
    patch.setattr(standing, "GONE_SECONDS", 1e9)


@mutant()
def never_adopt(patch):
    async def none(self, live):
        return []

    patch.setattr(LaunchRuns, "find_orphans", none)


@mutant()
def failed_read_is_end(patch):
    async def look(self, key):
        name = f"{self.jobs.parent}/customJobs/{key}"
        try:
            job = await self.jobs.get(name, attempts=1)
        except LaunchError:
            job = JobRecord(name=name, state=0, is_gone=True)
        self._tell(key, job)

    patch.setattr(JobWatcher, "_look", look)


@mutant()
def unlisted_is_end(patch):
    async def look(self, key):
        self._tell(key, JobRecord(name=f"{self.jobs.parent}/customJobs/{key}", state=0, is_gone=True))

    patch.setattr(JobWatcher, "_look", look)


@mutant()
def hand_over_cancels(patch):
    real = QueueServer.hand_over

    async def hand_over(self):
        for live in self.session.live.values():
            if live.job:
                await (await self.session.regions.of(live.job.name)).jobs.cancel(live.job.name)
        await real(self)

    patch.setattr(QueueServer, "hand_over", hand_over)


@mutant()
def never_in_doubt(patch):
    patch.setattr(standing, "DOUBT_SECONDS", 1e9)


@mutant()
def not_let_go(patch):
    patch.setattr(QueueServer, "let_go_of_others", _nothing)


@mutant()
def random_label(patch):
    patch.setattr(rendering, "launch_key", lambda _: uuid4().hex)


@mutant()
def no_report(patch):
    patch.setattr(steps, "report", _nothing)


@mutant()
def always_relaunch(patch):
    patch.setattr(attempts, "_policy", lambda session, live: Policy(10**6, live.plans))


@mutant()
def relaunch_10(patch):
    patch.setattr(attempts, "_policy", lambda session, live: Policy(10, live.plans))


@mutant()
def relaunch_4(patch):
    patch.setattr(attempts, "_policy", lambda session, live: Policy(4, live.plans))


@mutant()
def never_relaunch(patch):
    patch.setattr(attempts, "_policy", lambda session, live: Policy(0, live.plans))


@mutant()
def surplus_oldest(patch):
    def surplus(jobs, attempt=1):
        live = sorted((job for job in jobs if not job.is_terminal), key=lifecycle._age)
        if len(live) > 1 and live[0].launch_state is not lifecycle.LaunchState.CANCELLING:
            return Cancel(live[0], "x")
        return None

    patch.setattr(lifecycle, "surplus", surplus)
    patch.setattr(job_watcher, "surplus", surplus)


@mutant()
def surplus_never(patch):
    patch.setattr(lifecycle, "surplus", lambda *_: None)
    patch.setattr(job_watcher, "surplus", lambda *_: None)


@mutant()
def younger_speaks(patch):
    patch.setattr(
        attempts,
        "_ended",
        lambda jobs: [max(a, key=attempts._age) for a in attempts.by_attempt(jobs).values()],
    )


@mutant()
def no_last_word(patch):
    async def find(session, live, *_):
        return live.job

    patch.setattr(attempts, "find_last_word", find)


@mutant()
def no_refuse(patch):
    patch.setattr(steps, "refuse", _nothing)


@mutant()
def same_number(patch):
    real = attempts.next_attempt

    def nxt(ended, policy):
        n = real(ended, policy)
        return n and Attempt(1, n.plan)

    patch.setattr(attempts, "next_attempt", nxt)


@mutant()
def count_from_start(patch):
    """relaunches are not counted on from the jobs"""
    patch.setattr(
        attempts,
        "_categories",
        lambda s, l, ended: [attempts.diagnose_attempt(s, l, j).category for j in ended][-1:],
    )


@mutant()
def prefect_stop_ignored(patch):
    patch.setattr(stops, "_ask_prefect", _nothing)


@mutant()
def wandb_stop_ignored(patch):
    patch.setattr(stops, "_ask_wandb", _nothing)


@mutant()
def cancel_tag_forgotten(patch):
    patch.setattr(queue_server, "CANCEL_TAG", "x")


@mutant()
def mend_live_slots(patch):
    async def noted(self):
        return 0

    patch.setattr(LaunchRuns, "slots_noted", noted)


@mutant()
def no_mend(patch):
    patch.setattr(Slots, "mend", _nothing)


@mutant()
def lease_not_noted(patch):
    patch.setattr(launch_runs, "lease_labels", lambda _: {})


@mutant()
def lease_not_renewed(patch):
    async def keep(self):
        await self._clock.sleep(1e9)

    patch.setattr(Slots, "keep_renewed", keep)


@mutant()
def owed_not_settled(patch):
    async def settle(self):
        return True

    patch.setattr(Slots, "settle", settle)


@mutant()
def random_idempotency(patch):
    real = launch_runs.FlowRunCreate
    patch.setattr(launch_runs, "FlowRunCreate", lambda **f: real(**{**f, "idempotency_key": uuid4().hex}))


@mutant()
def adopt_unconfirmed(patch):
    async def adopt(self, orphans):
        for o in orphans:
            await self._own(o)
        return [await self._ready(await self._client.read_flow_run(o.id)) for o in orphans]

    patch.setattr(LaunchRuns, "adopt", adopt)


@mutant()
def never_settled(patch):
    patch.setattr(launch_runs, "_is_settled", lambda _: False)


@mutant()
def always_knows(patch):
    patch.setattr(QueueServer, "_knows_who_carries_what", lambda self: True)


@mutant()
def serve_before_adopt(patch):
    async def t(self):
        return True

    patch.setattr(QueueServer, "try_to_adopt", t)


@mutant()
def no_may_have_job(patch):
    real = QueueServer._live

    def live(self, *a):
        l = real(self, *a)
        l.may_have_job = False
        return l

    patch.setattr(QueueServer, "_live", live)


@mutant()
def owner_not_asked_at_create(patch):
    real = LaunchRuns.create

    async def create(self, item, lease_id=None):
        at_work = self._colleagues.at_work
        self._colleagues.at_work = _set
        try:
            return await real(self, item, lease_id)
        finally:
            self._colleagues.at_work = at_work

    patch.setattr(LaunchRuns, "create", create)


@mutant()
def cancel_not_repeated(patch):
    from flows import waiting

    async def cancel(session, name):
        try:
            await (await session.regions.of(name)).jobs.cancel(name)
        except LaunchError:
            pass

    patch.setattr(waiting, "_cancel", cancel)
    patch.setattr(waiting, "CANCEL_AGAIN_SECONDS", 1e9)


@mutant()
def odd_state_is_end(patch):
    real = lifecycle.state_of_job

    def s(state):
        try:
            return lifecycle.STATE_OF_JOB[lifecycle.JobState(state)]
        except (ValueError, KeyError):
            return lifecycle.LaunchState.FAILED

    patch.setattr(lifecycle, "state_of_job", s)


@mutant()
def take_over_without_conflict(patch):
    """handed over launches end their flow run"""


@mutant()
def release_after_hand_over(patch):
    """a handed over launch gives its slot back"""
    real = Slots.forget

    def forget(self, slot):
        import asyncio

        asyncio.ensure_future(self.release(slot))

    patch.setattr(Slots, "forget", forget)


@mutant()
def no_init_check(patch):
    from flows import outcome

    async def t(*_):
        return True

    patch.setattr(outcome, "_run_shows_up", t)


@mutant()
def outage_ends_launch(patch):
    """an outage longer than the retries ends the launch"""
    real = course.Course._until_settled

    async def once(self):
        return await self._settled()

    patch.setattr(course.Course, "_until_settled", once)


@mutant()
def outage_is_refusal(patch):
    async def once(self):
        try:
            return await self._settled()
        except LaunchError as e:
            self._live.refusal = Refused(Problem("x", "y"))
            return await self._settled()

    patch.setattr(course.Course, "_until_settled", once)


@mutant()
def slot_kept(patch):
    patch.setattr(Slots, "release", _nothing)
    patch.setattr(Slots, "forget", lambda *_: None)


def _both(*fs):
    def f(patch):
        for g in fs:
            g(patch)
    return f


def _blind(patch):
    no_look_after_unknown(patch)
    no_may_have_job(patch)


MUTANTS["blind"] = Mutant("", _blind, None)
for n in ("surplus_never", "surplus_oldest", "younger_speaks", "no_last_word"):
    MUTANTS["blind_" + n] = Mutant("", _both(_blind, MUTANTS[n].apply), None)
