"""The steps of one launch. Each can be repeated, by this process or by another one.

What a step finds out is in the launch itself (`LiveLaunch`); what it returns is for people to read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect_vertex_launch.coordination.slot import SlotLost
from prefect_vertex_launch.core.errors import InvalidRunSpec, NotFound, OverQuota
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.launch import find_jobs, timeouts
from prefect_vertex_launch.launch import render as preparation
from prefect_vertex_launch.launch import report as outcome
from prefect_vertex_launch.launch.denial import denial_passes
from prefect_vertex_launch.launch.item import run_of
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.notify import warn
from prefect_vertex_launch.launch.queue_context import LaunchSession


async def claim(session: LaunchSession, live: LiveLaunch) -> str:
    """Read the item's run spec and acknowledge it at W&B; return the run id, or none if it is another's now.

    Raises InvalidRunSpec before the item is claimed, Conflict when another agent has it, and Transient as
    long as W&B denies the queue to us, which is no fault of the item.
    """
    if problems := live.item.as_problems():
        raise InvalidRunSpec(problems)
    item_id = live.item.item_id
    run = run_of(live.item.require_spec(), item_id)
    # The item of a job that runs already was claimed by the agent that made it; when that one was stopped
    # it may have failed the item, and nobody can claim it any more.
    if live.item.job_name is None:
        if not await session.until_sure(live):
            return ""
        # Dying here leaves the item leased: it returns to the queue by itself and keeps this flow run.
        with denial_passes():
            await session.wandb.acknowledge(item_id, run.run_id)
    live.run = run
    return run.run_id


async def render_job(session: LaunchSession, live: LiveLaunch) -> dict[str, Any]:
    """Make the CustomJob from run spec and queue configuration; return it without its secrets.

    Raises InvalidQueueConfig or InvalidRunSpec with everything that is wrong, before any request
    to Vertex AI.
    """
    prepared = await preparation.prepare(session, live)
    rendering = find_jobs.render_attempt(session, live)
    if warnings := (*prepared.config.warnings, *rendering.warnings):
        await warn(session, live, "\n".join(warnings))
    return rendering.redacted()


async def submit(session: LaunchSession, live: LiveLaunch) -> str:
    """Create the CustomJob unless there is one for this item already; return its resource name.

    Waits as long as a quota is used up. Returns no name when there is no job because somebody asked
    for the launch's end or this process hands it over. Raises Refused with Vertex AI's own words when
    it will not have the job.
    """
    quota = timeouts.QuotaWait(session, live)
    has_looked_later = False
    while True:
        live.job = await find_jobs.find(session, live)
        if live.job is None and live.may_have_job and not has_looked_later:
            live.job = await find_jobs.find_later(session, live)
            has_looked_later = True
            if live.job is None:
                live.job = await find_jobs.find_until_slot(session, live)
        if live.job is None and not await preparation.may_start(session, live):
            return await _last_look(session, live)
        try:
            live.job = live.job or await find_jobs.create(session, live)
        except SlotLost:
            continue
        except OverQuota as error:
            if await quota.again(error):
                continue
            return await _last_look(session, live)
        # A thousand launches wait at once: what the job was made of is made again should it be needed.
        live.prepared = None
        return live.job.name


async def _last_look(session: LaunchSession, live: LiveLaunch) -> str:
    """Return the name of a job that turns up after all once no other is to be created, or none."""
    if live.may_have_job and not live.leave.is_set():
        live.job = await find_jobs.find_later(session, live, find_jobs.LAST_LOOKS_SECONDS)
    return live.job.name if live.job is not None else ""


async def find_left_job(session: LaunchSession, live: LiveLaunch) -> str:
    """Return the resource name of the job that another process has made, or none if there is none.

    This is for an item that could not be launched any more: the configuration was changed since, or the
    item was removed at W&B. What runs already is seen through all the same.
    """
    if live.item.as_problems():
        return ""  # it never could be launched
    live.run = live.run or run_of(live.item.require_spec(), live.item.item_id)
    live.locations = live.locations or tuple(
        preparation.locations(session, preparation.configuration(session, live.item))
    )
    live.job = await find_jobs.find(session, live)
    if live.job is None:
        live.job = await find_jobs.find_later(session, live, find_jobs.LAST_LOOKS_SECONDS)
    return live.job.name if live.job is not None else ""


async def find_running_job(session: LaunchSession, live: LiveLaunch) -> str:
    """Read the job that W&B's own agent had made of the item; return its resource name."""
    name = live.item.job_name
    assert name is not None
    region = await session.regions.of(name)
    try:
        with denial_passes():
            live.job = await region.jobs.get(name)
    except NotFound:
        live.job = JobRecord(name, JobState.JOB_STATE_UNSPECIFIED, is_gone=True)
    return live.job.name


async def wait(session: LaunchSession, live: LiveLaunch) -> str:
    """Wait until the job has ended, or this process hands it over; return the state's name."""
    while True:
        assert live.job is not None
        if not live.job.is_terminal and not await _watch(session, live, live.job):
            return "handed over"
        if live.item.job_name is None:
            live.job = await find_jobs.find_last_word(session, live)
        if live.job.is_terminal:
            return live.job.launch_state.value


async def _watch(session: LaunchSession, live: LiveLaunch, job: JobRecord) -> bool:
    """Watch the launch's job until it has ended; False if the launch is handed over before."""
    region = await session.regions.of(job.name)
    watch = asyncio.create_task(region.watcher.wait(job.name, timeouts.on_change(session, live)))
    leaving = asyncio.create_task(live.leave.wait())
    beside = [asyncio.ensure_future(duty()) for duty in timeouts.duties(session, live)]
    try:
        await asyncio.wait({watch, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            live.job = watch.result()
        return watch.done()
    finally:
        for waiter in (watch, leaving, *beside):
            waiter.cancel()


async def report(session: LaunchSession, live: LiveLaunch) -> str:
    """Tell W&B how the job ended and leave links and a diagnosis; return the diagnosis' summary.

    Returns none if the launch is another agent's by now, or may be.
    """
    return await outcome.report(session, live)


async def refuse(session: LaunchSession, live: LiveLaunch) -> str:
    """Fail the item at W&B with the reason why it cannot be launched; return it as `report` does."""
    assert live.refusal is not None
    return await outcome.report_refusal(session, live, str(live.refusal))
