"""The attempts of a launch: found again at Vertex AI by their labels, created, and followed by others.

An attempt is one CustomJob. What came before is read from Vertex AI each time, so a process that
takes a launch over counts on where the last one stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import httpx

from prefect_vertex_launch.coordination import marks
from prefect_vertex_launch.coordination.slot import SlotLost
from prefect_vertex_launch.core.clock import sleep_until, sleep_until_any
from prefect_vertex_launch.core.diagnosis import Category, Diagnosis, diagnose
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    LaunchError,
    NotFound,
    OutcomeUnknown,
    OverQuota,
    Permanent,
    PermissionDenied,
    Transient,
)
from prefect_vertex_launch.core.retry_policy import (
    Attempt,
    Policy,
    by_attempt,
    current_attempt,
    next_attempt,
    was_queueing_timeout,
)
from prefect_vertex_launch.core.states import (
    Cancel,
    Desired,
    ItemState,
    JobRecord,
    Observed,
    Report,
    Requester,
    StopRequest,
    Submit,
    Wait,
    age,
    decide,
)
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.render import Rendering, render
from prefect_vertex_launch.launch import preparation
from prefect_vertex_launch.launch.denial import denial_passes
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import LiveLaunch, Prepared
from prefect_vertex_launch.launch.queue_context import LaunchSession
from prefect_vertex_launch.launch.run_log import run_log

# Vertex AI's LIST may lag behind a create whose answer was lost.
LOOK_AGAIN_SECONDS = (2.0, 8.0)
# After this nobody reckons any more with a job that no list has shown: it is what Vertex AI's create and
# LIST may take together, with room to spare.
LAST_LOOKS_SECONDS = (2.0, 8.0, 30.0, 60.0)
# What was listed longer ago than this is listed again before a job is created.
STALE_SECONDS = 5.0
# A turn that was not used for so long is somebody else's by now.
TURN_SECONDS = 30.0


def render_attempt(session: LaunchSession, live: LiveLaunch) -> Rendering:
    """Return the job of the launch's current attempt, always the same one.

    Raises InvalidQueueConfig with everything that is wrong.
    """
    renderings = _prepared(live).renderings
    if live.attempt not in renderings:
        renderings[live.attempt] = _render(session, live)
    return renderings[live.attempt]


def _render(session: LaunchSession, live: LiveLaunch) -> Rendering:
    block, prepared, run = session.block, _prepared(live), live.run
    assert run is not None
    endpoint = block.wandb_credentials.endpoint()
    return render(
        prepared.spec,
        prepared.config.plan(live.attempt.plan),
        LaunchContext(
            item_id=live.item.item_id,
            queue_entity=block.entity,
            queue_name=block.queue,
            run_id=run.run_id,
            image_uri=prepared.image.image_uri,
            base_url=endpoint.base_url,
            api_key=live.api_key or endpoint.api_key,
            project=block.project,
            location=live.locations[live.attempt.plan],
            attempt=live.attempt.number,
            macros=block.macros(),
            job_entry_point=prepared.image.entry_point,
            api_key_of_author=live.api_key is not None,
            api_key_secret=block.api_key_secret,
            code=prepared.image.code,
            locks=block.scheduler_locks() if prepared.spec.is_scheduler else block.locks(),
            block_defaults=block.defaults(),
        ),
    )


async def find(session: LaunchSession, live: LiveLaunch) -> JobRecord | None:
    """Return the launch's job: the one that is under way, or the last one if no other is to follow.

    None means that a job is to be created, for `live.attempt`. Of two live jobs the one too many is
    cancelled.
    """
    decision, jobs = await _look(session, live)
    match decision:
        case Wait(job=job):
            _stand_before(session, live, job, jobs)
            return job
        case Report():
            *earlier, last = _ended(jobs)
            if (following := _following(session, live, [*earlier, last])) is None:
                _stand_at(session, live, earlier)
                return last
            live.begin(following, (*earlier, last))
            return None
        case Submit():
            live.begin(Attempt(number=1, plan=0), ())
            return None
        case _:
            raise LaunchError(f"item {live.item.item_id}: nothing can be done for {decision}")


async def find_last_word(session: LaunchSession, live: LiveLaunch) -> JobRecord:
    """Return the job that speaks for the current attempt, whose job has ended.

    It is another one if a duplicate has come to light meanwhile: one that is under way still, or the
    one that was there first. Of two live jobs the one too many is cancelled. A job that has ended soon
    after another create of its attempt got no answer is asked about once that one would be listed.
    """
    if live.may_have_twin and live.job is not None and live.job.create_time is not None:
        existed = session.clock.now() - live.job.create_time
        await sleep_until(live.leave, sum(LAST_LOOKS_SECONDS) - existed.total_seconds(), session.clock)
    decision, jobs = await _look(session, live)
    if isinstance(decision, Wait):
        _stand_before(session, live, decision.job, jobs)
        return decision.job
    *earlier, last = _ended(jobs)
    _stand_at(session, live, earlier)
    return last


async def find_later(
    session: LaunchSession, live: LiveLaunch, pauses: Sequence[float] | None = None
) -> JobRecord | None:
    """Return the launch's job if it turns up a little later: nobody knows yet whether there is one.

    A launch that is to be left is not looked for any longer.
    """
    for pause_seconds in LOOK_AGAIN_SECONDS if pauses is None else pauses:
        if await sleep_until(live.leave, pause_seconds, session.clock):
            return None
        if job := await _look_again(session, live):
            return job
    return None


async def find_until_slot(session: LaunchSession, live: LiveLaunch) -> JobRecord | None:
    """Return the launch's job if it turns up while the launch has no slot for another one."""
    ends = (live.slot.admits, live.stop_requested, live.leave)
    for pause_seconds in LAST_LOOKS_SECONDS:
        if await sleep_until_any(ends, pause_seconds, session.clock):
            return None
        if job := await _look_again(session, live):
            return job
    return None


async def create(session: LaunchSession, live: LiveLaunch) -> JobRecord:
    """Create the job of the current attempt; where a plan's machines are over quota, of its next plan.

    Raises OverQuota when no plan is left, Refused with Vertex AI's own words when it will not have
    the job, OutcomeUnknown when nobody can tell whether there is one, and SlotLost when the launch has to
    wait for its slot again.
    """
    while True:
        try:
            if job := await _create(session, live):
                return job
        except OverQuota as error:
            plan = live.attempt.plan + 1
            if not error.is_capacity or plan >= live.plans:
                raise
            run_log().warning("Trying fallback %d: %s", plan, error)
            live.attempt = Attempt(live.attempt.number, plan)


async def cancel_all(session: LaunchSession, item: QueueItem, noted: Iterable[str]) -> bool:
    """Cancel whatever runs of an item, here or where its flow run has noted that its jobs may be.

    Returns whether there is any job of it. Raises LaunchError when Vertex AI cannot be asked.
    """
    config = preparation.configuration(session, item)
    parents = preparation.whereabouts(session, config) | frozenset(noted)
    jobs = list(await session.regions.jobs_of(item.item_id, parents))
    if item.job_name is not None:
        jobs.append(await (await session.regions.of(item.job_name)).jobs.get(item.job_name))
    for job in jobs:
        if not job.is_terminal:
            await _cancel(session, job)
    return bool(jobs)


def turn_to_next(session: LaunchSession, live: LiveLaunch) -> bool:
    """Turn to the attempt that is to follow the one that has just ended; False if none is."""
    assert live.job is not None
    ended = (*live.ended, live.job)
    if live.item.job_name or (following := _following(session, live, ended)) is None:
        return False
    live.begin(following, ended)
    return True


def diagnose_attempt(session: LaunchSession, live: LiveLaunch, job: JobRecord) -> Diagnosis:
    """Return why an attempt's job ended, whoever watched it then."""
    stop = live.stop if live.job is not None and live.job.job_id == job.job_id else None
    if stop is None and was_queueing_timeout(job, session.block.queueing_timeout_seconds):
        stop = StopRequest(Requester.QUEUEING_TIMEOUT, job.end_time or session.clock.now(), 0.0)
    return diagnose(job, stop=stop)


async def _create(session: LaunchSession, live: LiveLaunch) -> JobRecord | None:
    """Return the job of the current attempt; None if the attempt has become another one meanwhile."""
    attempt, rendering = live.attempt, render_attempt(session, live)
    if live.may_have_job and not live.may_have_twin:
        await _mark_twin(session, live)
    location = rendering.parent.rsplit("/", 1)[-1]
    region = await session.regions.at(location)
    if (turn := await session.turn_to_submit(live, region.jobs)) is None:
        raise _not_yet()
    while await _must_look(session, live):
        if job := await _look_again(session, live):
            return job
        if live.attempt != attempt:
            return None
        if (
            session.clock.monotonic() - turn > TURN_SECONDS
            and (turn := await session.turn_to_submit(live, region.jobs)) is None
        ):
            raise _not_yet()
    try:
        # Dying here is why the label is looked for first: the job is found by the next try.
        job = await region.jobs.create(
            rendering.job, timeout_seconds=rendering.create_timeout_seconds, turn=turn
        )
    except OutcomeUnknown:
        live.may_have_job = True
        if job := await find_later(session, live):
            return job
        raise
    return job


async def _mark_twin(session: LaunchSession, live: LiveLaunch) -> None:
    """Note that the launch may get a second job. Raises Transient if Prefect cannot be told."""
    try:
        await session.page.mark(live.flow_run_id, marks.MAY_HAVE_TWIN)
    except httpx.HTTPError as error:
        raise Transient(f"Prefect could not be told that the launch may have two jobs: {error}") from error
    live.may_have_twin = True


async def _must_look(session: LaunchSession, live: LiveLaunch) -> bool:
    """Whether too much time has passed since the last look, once nothing else stands against a create.

    Raises OverQuota, as no job was created, when the launch is to be left or ended before, and SlotLost when
    it has to wait for its slot again.
    """
    if not await session.may_submit(live):
        raise _not_yet()
    if not session.has_slot(live):
        raise SlotLost
    is_stale = session.clock.monotonic() - live.looked_at > STALE_SECONDS
    return is_stale or live.looked_in != _own_parents(session, live)


def _not_yet() -> OverQuota:
    return OverQuota("the turn of this job had not come yet", is_capacity=False)


async def _look(session: LaunchSession, live: LiveLaunch) -> tuple[object, tuple[JobRecord, ...]]:
    """Return what is to be done, and the launch's jobs, once there is none too many."""
    while True:
        own = _own_parents(session, live)
        jobs = await _jobs(session, live, own)
        live.looked_in, live.looked_at = own, session.clock.monotonic()
        decision = _decision(session, live, jobs)
        if not isinstance(decision, Cancel):
            return decision, jobs
        run_log().error("Cancelling %s: %s", decision.job.name, decision.reason)
        await _cancel(session, decision.job)
        await session.clock.sleep(LOOK_AGAIN_SECONDS[0])


async def _cancel(session: LaunchSession, job: JobRecord) -> None:
    region = await session.regions.of(job.name)
    # One that is not found is gone by itself.
    with denial_passes(), contextlib.suppress(NotFound):
        await region.jobs.cancel(job.name)


async def _look_again(session: LaunchSession, live: LiveLaunch) -> JobRecord | None:
    """Return the job that has turned up meanwhile; if there is none the attempt keeps its plan.

    A job of this attempt may have ended already by the time it turns up: then the attempt is the next one.
    """
    attempt = live.attempt
    job = await find(session, live)
    if job is None and live.attempt.number == attempt.number:
        live.attempt = attempt
    return job


async def _jobs(session: LaunchSession, live: LiveLaunch, own: frozenset[str]) -> tuple[JobRecord, ...]:
    """Return the jobs of this item in every region it may be in, and those this process knows.

    `own`, where the current attempt's job goes, is asked last, as other regions may be slow to answer.
    A list that lags must neither hide an attempt nor bring one back that has ended.
    """
    others = (session.regions.parents(live.locations) | live.whereabouts) - own
    try:
        listed = [*await session.regions.jobs_of(live.item.item_id, others)]
        listed += await session.regions.jobs_of(live.item.item_id, own)
    except AuthenticationFailed:
        raise
    except Permanent as error:
        # Who may not even look has a problem with the queue and not with this item; and what cannot be
        # seen may run all the same.
        if isinstance(error, PermissionDenied) or live.may_have_job:
            raise Transient(str(error)) from error
        raise
    jobs = {job.job_id: job for job in listed}
    known = (*live.ended, live.job) if live.job is not None else live.ended
    jobs.update({job.job_id: job for job in known if job.is_terminal or job.job_id not in jobs})
    return tuple(jobs.values())


def _own_parents(session: LaunchSession, live: LiveLaunch) -> frozenset[str]:
    """Return where the job of the current attempt goes; nowhere if it is not known."""
    plan = live.attempt.plan
    return session.regions.parents(live.locations[plan : plan + 1])


def _decision(session: LaunchSession, live: LiveLaunch, jobs: tuple[JobRecord, ...]) -> object:
    assert live.run is not None
    run_id = live.run.run_id
    return decide(
        Observed(item_state=ItemState.CLAIMED, item_run_id=run_id, jobs=jobs),
        Desired(run_id=run_id, stop=None),
        session.clock.now(),
    )


def _ended(jobs: Iterable[JobRecord]) -> list[JobRecord]:
    """Return one job for each attempt, oldest attempt first; of duplicates the older speaks."""
    return [min(attempt, key=age) for attempt in by_attempt(jobs).values()]


def _following(session: LaunchSession, live: LiveLaunch, ended: Sequence[JobRecord]) -> Attempt | None:
    if live.is_stopped_by_someone:
        return None
    return next_attempt(_categories(session, live, ended), _policy(session, live))


def _stand_before(
    session: LaunchSession, live: LiveLaunch, job: JobRecord, jobs: Iterable[JobRecord]
) -> None:
    _stand_at(session, live, _ended(other for other in jobs if other.attempt < job.attempt))


def _stand_at(session: LaunchSession, live: LiveLaunch, earlier: Sequence[JobRecord]) -> None:
    """Take the place in the row of attempts that comes after these."""
    stop = live.stop
    categories = _categories(session, live, earlier)
    live.begin(current_attempt(categories, _policy(session, live)), tuple(earlier))
    if stop is not None:
        live.request_stop(stop)


def _categories(session: LaunchSession, live: LiveLaunch, ended: Sequence[JobRecord]) -> list[Category]:
    return [diagnose_attempt(session, live, job).category for job in ended]


def _policy(session: LaunchSession, live: LiveLaunch) -> Policy:
    return Policy(max_relaunches=session.block.max_relaunches, plans=live.plans)


def _prepared(live: LiveLaunch) -> Prepared:
    assert live.prepared is not None
    return live.prepared
