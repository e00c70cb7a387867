"""The step `submit`: the job is looked for by its label, and created only if it is not there."""

from __future__ import annotations

import httpx

from prefect_vertex_launch.coordination import launch_record
from prefect_vertex_launch.coordination.slot import SlotLost
from prefect_vertex_launch.core.clock import until_any
from prefect_vertex_launch.core.errors import OutcomeUnknown, OverQuota, Transient
from prefect_vertex_launch.core.retry_policy import Attempt
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.jobspec.sweeps import check_sweep_state
from prefect_vertex_launch.launch import find_jobs
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.notify import RUNNING, show
from prefect_vertex_launch.launch.quota_wait import QuotaWait
from prefect_vertex_launch.launch.render import rendering_of
from prefect_vertex_launch.launch.run_log import run_log

# What was listed longer ago than this is listed again before a job is created.
STALE_SECONDS = 5.0
# A turn that was not used for so long is somebody else's by now.
TURN_SECONDS = 30.0


async def submit(launch: Launch, *, may_create: bool = True) -> str:
    """Create the CustomJob unless there is one for this item already; return its resource name.

    Waits as long as a quota is used up. Unless it `may_create` a job, it only looks for one that another
    process has made. Returns no name when there is no job: somebody asked for the launch's end, this process
    hands it over, or there is none to be found. Raises Refused with Vertex AI's own words when it will not
    have the job.
    """
    if launch.item.job_name is not None:
        launch.job = await find_jobs.find_adopted_job(launch, launch.item.job_name)
    elif not may_create:
        launch.job = await find_jobs.find_left_job(launch)
    elif launch.job is None:
        launch.job = await _found_or_created(launch)
    return launch.job.name if launch.job is not None else ""


async def _found_or_created(launch: Launch) -> JobRecord | None:
    quota = QuotaWait(launch)
    has_looked_later = False
    while True:
        job = await find_jobs.find(launch)
        if job is None and launch.may_have_job and not has_looked_later:
            job = await find_jobs.find_later(launch)
            has_looked_later = True
            if job is None:
                job = await find_jobs.find_until_slot(launch)
        if job is None and not await _may_start(launch):
            return await _last_look(launch)
        try:
            job = job or await _create(launch)
        except SlotLost:
            continue
        except OverQuota as error:
            if await quota.again(error):
                continue
            return await _last_look(launch)
        # A thousand launches wait at once: what the job was made of is made again should it be needed.
        launch.prepared = None
        return job


async def _may_start(launch: Launch) -> bool:
    """Whether a job may be created now: nobody wants the launch's end, and its sweep goes on.

    A launch that has lost its slot waits here for another one, and a sweep scheduler for its place under the
    limit for schedulers. Raises InvalidRunSpec for a trial of a sweep that has ended.
    """
    assert launch.prepared is not None
    spec = launch.prepared.spec
    if not launch.has_slot():
        await show(launch, "WaitingForSlot", "The queue runs as much at once as it may.")
        launch.is_waiting_for_slot = True
        await until_any(launch.slot.admits, launch.stop_requested, launch.leave)
        launch.is_waiting_for_slot = False
        await show(launch, RUNNING, "It has its place.")
    await launch.until_sure()
    if launch.stop_requested.is_set() or launch.leave.is_set():
        return False
    if spec.sweep_id and not spec.is_scheduler and launch.attempt.number == 1:
        state = await launch.context.wandb.read_sweep_state(spec.entity, spec.project, spec.sweep_id)
        check_sweep_state(state, spec.sweep_id)
    return True


async def _last_look(launch: Launch) -> JobRecord | None:
    """Return a job that turns up after all once no other is to be created."""
    if launch.may_have_job and not launch.leave.is_set():
        return await find_jobs.find_later(launch, find_jobs.LAST_LOOKS_SECONDS)
    return None


async def _create(launch: Launch) -> JobRecord:
    """Create the job of the current attempt; where a plan's machines are over quota, of its next plan.

    Raises OverQuota when no plan is left, Refused with Vertex AI's own words when it will not have
    the job, OutcomeUnknown when nobody can tell whether there is one, and SlotLost when the launch has to
    wait for its slot again.
    """
    while True:
        try:
            if job := await _create_attempt(launch):
                return job
        except OverQuota as error:
            plan = launch.attempt.plan + 1
            if not error.is_capacity or plan >= launch.plans:
                raise
            run_log().warning("Trying fallback %d: %s", plan, error)
            launch.attempt = Attempt(launch.attempt.number, plan)


async def _create_attempt(launch: Launch) -> JobRecord | None:
    """Return the job of the current attempt; None if the attempt has become another one meanwhile."""
    attempt, rendering = launch.attempt, await rendering_of(launch)
    if launch.may_have_job and not launch.may_have_duplicate:
        await _expect_duplicate(launch)
    region = await launch.context.regions.at(rendering.parent.rsplit("/", 1)[-1])
    clock = launch.context.clock
    if (turn := await launch.turn_to_submit(region.jobs)) is None:
        raise _not_yet()
    while await _must_look(launch):
        if job := await find_jobs.look_again(launch):
            return job
        if launch.attempt != attempt:
            return None
        if (
            clock.monotonic() - turn > TURN_SECONDS
            and (turn := await launch.turn_to_submit(region.jobs)) is None
        ):
            raise _not_yet()
    try:
        # Dying here is why the label is looked for first: the job is found by the next try.
        return await region.jobs.create(
            rendering.job, timeout_seconds=rendering.create_timeout_seconds, turn=turn
        )
    except OutcomeUnknown:
        launch.may_have_job = True
        if job := await find_jobs.find_later(launch):
            return job
        raise


async def _expect_duplicate(launch: Launch) -> None:
    """Record that the launch may get a second job. Raises Transient if Prefect cannot be told."""
    try:
        await launch.context.page.mark(launch.flow_run_id, launch_record.MAY_HAVE_DUPLICATE)
    except httpx.HTTPError as error:
        raise Transient(f"Prefect could not be told that the launch may have two jobs: {error}") from error
    launch.may_have_duplicate = True


async def _must_look(launch: Launch) -> bool:
    """Whether too much time has passed since the last look, once nothing else stands against a create.

    Raises OverQuota, as no job was created, when the launch is to be left or ended before, and SlotLost when
    it has to wait for its slot again.
    """
    if not await launch.may_submit():
        raise _not_yet()
    if not launch.has_slot():
        raise SlotLost
    is_stale = launch.context.clock.monotonic() - launch.looked_at > STALE_SECONDS
    return is_stale or launch.looked_in != find_jobs.own_parents(launch)


def _not_yet() -> OverQuota:
    return OverQuota("the turn of this job had not come yet", is_capacity=False)
