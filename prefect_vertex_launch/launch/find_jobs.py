"""Finding the jobs of a launch at Vertex AI by their label, in every region where they may be.

Nothing is created here. A list may lag behind a create whose answer was lost, so what may be there is looked
for again a little later.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefect_vertex_launch.core.clock import sleep_until, sleep_until_any
from prefect_vertex_launch.core.duplicates import current_job, surplus
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    NotFound,
    Permanent,
    PermissionDenied,
    Problem,
    Transient,
    waiting_if_denied,
)
from prefect_vertex_launch.core.labels import ITEM_LABEL
from prefect_vertex_launch.core.retry_policy import Attempt
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.launch import attempts, render
from prefect_vertex_launch.launch.cancel import cancel_job
from prefect_vertex_launch.launch.item import run_of
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.run_log import run_log

# Vertex AI's LIST may lag behind a create whose answer was lost.
LOOK_AGAIN_SECONDS = (2.0, 8.0)
# After this no list will show a job any more: it is what Vertex AI's create and LIST may take together, with
# room to spare.
LAST_LOOKS_SECONDS = (2.0, 8.0, 30.0, 60.0)


async def find(launch: Launch) -> JobRecord | None:
    """Return the launch's job: the one that is under way, or the last one if no other is to follow.

    None means that a job is to be created, for `launch.attempt`. Of two live jobs the one too many is
    cancelled.
    """
    jobs = await _look(launch)
    job = current_job(jobs)
    if job is None:
        launch.begin(Attempt(number=1, plan=0), ())
        return None
    if not job.is_terminal:
        attempts.stand_before(launch, job, jobs)
        return job
    ended = attempts.ended_of(jobs)
    if (following := attempts.following(launch, ended)) is not None:
        launch.begin(following, tuple(ended))
        return None
    *earlier, last = ended
    attempts.stand_at(launch, earlier)
    return last


async def find_last_word(launch: Launch) -> JobRecord:
    """Return the job that speaks for the current attempt, whose job has ended.

    It is another one if a duplicate has come to light meanwhile: one that is under way still, or the
    one that was there first. Of two live jobs the one too many is cancelled. A job that has ended soon
    after another create of its attempt got no answer is asked about once that one would be listed.
    """
    clock = launch.context.clock
    if launch.may_have_duplicate and launch.job is not None:
        existed_seconds = launch.waited.known_seconds(launch.job)
        await sleep_until(launch.leave, sum(LAST_LOOKS_SECONDS) - existed_seconds, clock)
    jobs = await _look(launch)
    job = current_job(jobs)
    if job is not None and not job.is_terminal:
        attempts.stand_before(launch, job, jobs)
        return job
    *earlier, last = attempts.ended_of(jobs)
    attempts.stand_at(launch, earlier)
    return last


async def find_later(launch: Launch, pauses: Sequence[float] | None = None) -> JobRecord | None:
    """Return the launch's job if it turns up a little later: nobody knows yet whether there is one.

    `pauses` are the seconds before each look. A launch that is to be left is not looked for any longer.
    """
    for pause_seconds in LOOK_AGAIN_SECONDS if pauses is None else pauses:
        if await sleep_until(launch.leave, pause_seconds, launch.context.clock):
            return None
        if job := await look_again(launch):
            return job
    return None


async def find_until_slot(launch: Launch) -> JobRecord | None:
    """Return the launch's job if it turns up while the launch has no slot for another one."""
    ends = (launch.slot.admits, launch.stop_requested, launch.leave)
    for pause_seconds in LAST_LOOKS_SECONDS:
        if await sleep_until_any(ends, pause_seconds, launch.context.clock):
            return None
        if job := await look_again(launch):
            return job
    return None


async def look_again(launch: Launch) -> JobRecord | None:
    """Return the job that has turned up meanwhile; if there is none the attempt keeps its plan.

    A job of this attempt may have ended already by the time it turns up: then the attempt is the next one.
    """
    attempt = launch.attempt
    job = await find(launch)
    if job is None and launch.attempt.number == attempt.number:
        launch.attempt = attempt
    return job


async def find_left_job(launch: Launch) -> JobRecord | None:
    """Return the job that another process has made of an item that cannot be launched any more.

    The configuration was changed since, or the item was removed at W&B. What runs already is seen through
    all the same.
    """
    item, context = launch.item, launch.context
    if item.as_problems():
        return None  # it never could be launched
    launch.run = launch.run or run_of(item.require_spec(), item.item_id)
    launch.locations = launch.locations or tuple(
        render.locations(context, await render.configuration(context, item))
    )
    return await find(launch) or await find_later(launch, LAST_LOOKS_SECONDS)


async def find_adopted_job(launch: Launch, name: str) -> JobRecord:
    """Return the job that W&B's own agent had made of the item.

    Raises Permanent for a job that bears another launch's label: it is not touched.
    """
    region = await launch.context.regions.of(name)
    try:
        with waiting_if_denied():
            job = await region.jobs.get(name)
    except NotFound:
        return JobRecord(name, JobState.JOB_STATE_UNSPECIFIED, is_gone=True)
    own = launch.context.block.identity.item_key(launch.item.item_id)
    if job.labels.get(ITEM_LABEL, own) != own:
        raise Permanent(
            Problem(
                f"item {launch.item.item_id}",
                f"{name} is the job of another launch",
                why=f"its label {ITEM_LABEL} is another item's, or another queue's or server's",
                fix="Name a job that W&B's own agent made of this item.",
            )
        )
    return job


def own_parents(launch: Launch) -> frozenset[str]:
    """Return where the job of the current attempt goes; nowhere if it is not known."""
    plan = launch.attempt.plan
    return launch.context.regions.parents(launch.locations[plan : plan + 1])


async def _look(launch: Launch) -> tuple[JobRecord, ...]:
    """Return the launch's jobs, once there is none too many."""
    clock = launch.context.clock
    while True:
        own = own_parents(launch)
        jobs = await _jobs(launch, own)
        launch.looked_in, launch.looked_at = own, clock.monotonic()
        if (too_many := surplus(jobs)) is None:
            return jobs
        run_log().error("Cancelling %s: %s", too_many.job.name, too_many.reason)
        with waiting_if_denied():
            await cancel_job(launch.context, too_many.job.name)
        await clock.sleep(LOOK_AGAIN_SECONDS[0])


async def _jobs(launch: Launch, own: frozenset[str]) -> tuple[JobRecord, ...]:
    """Return the jobs of this item in every region it may be in, and those this process knows.

    `own`, where the current attempt's job goes, is asked last, as other regions may be slow to answer.
    A list that lags must neither hide an attempt nor bring one back that has ended.
    """
    regions, item_id = launch.context.regions, launch.item.item_id
    elsewhere = (regions.parents(launch.locations) | launch.parents) - own
    try:
        listed = [*await regions.jobs_of(item_id, elsewhere), *await regions.jobs_of(item_id, own)]
    except AuthenticationFailed:
        raise
    except Permanent as error:
        # Who may not even look has a problem with the queue and not with this item; and what cannot be
        # seen may run all the same.
        if isinstance(error, PermissionDenied) or launch.may_have_job:
            raise Transient(str(error)) from error
        raise
    jobs = {job.job_id: job for job in listed}
    known = (*launch.ended, launch.job) if launch.job is not None else launch.ended
    jobs.update({job.job_id: job for job in known if job.is_terminal or job.job_id not in jobs})
    return tuple(jobs.values())
