"""Cancelling jobs: on a person's request, after a timeout, and where two jobs live for one item.

All of it goes through `cancel_job`. Vertex AI's cancel is best effort, so a job that shows no effect is
cancelled again; only a terminal state ends the wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from prefect_vertex_launch.core.errors import LaunchError, NotFound
from prefect_vertex_launch.core.retry import Backoff, retrying
from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.launch import render
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.queue_context import QueueContext
from prefect_vertex_launch.launch.run_log import run_log

# A job that shows no effect of its cancel for so long is cancelled again.
CANCEL_AGAIN_SECONDS = 60.0
CANCEL_ALARM_SECONDS = 600.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0
# Nobody but its hook cancels the job of a launch that a worker ran: it tries for about half an hour.
TRIES_AFTER_DEATH = 35


async def cancel_job(context: QueueContext, job_name: str) -> None:
    """Ask Vertex AI once to cancel a job; a job that is not found is gone by itself.

    Raises LaunchError when Vertex AI does not take the request.
    """
    region = await context.regions.of(job_name)
    with contextlib.suppress(NotFound):
        await region.jobs.cancel(job_name)
    region.watcher.wake()


async def cancel_jobs_of(context: QueueContext, item: QueueItem, parents: Iterable[str]) -> bool:
    """Cancel whatever runs of an item, here or where its launch recorded that its jobs may be.

    `parents` are `projects/…/locations/…` each. Returns whether the item has any job. Raises LaunchError when
    Vertex AI cannot be asked.
    """
    own = render.job_parents(context, await render.configuration(context, item))
    jobs = list(await context.regions.jobs_of(item.item_id, own | frozenset(parents)))
    if item.job_name is not None:
        jobs.append(await (await context.regions.of(item.job_name)).jobs.get(item.job_name))
    for job in jobs:
        if not job.is_terminal:
            await cancel_job(context, job.name)
    return bool(jobs)


async def cancel_after_death(
    context: QueueContext, item: QueueItem, parents: Iterable[str], looks: Iterable[float]
) -> None:
    """Cancel the jobs of a launch whose process is gone, as soon as Vertex AI can be asked.

    `looks` are the seconds before each further look where no job is found: the process may have died while it
    created one. Raises the last LaunchError after half an hour.
    """

    async def cancelled() -> bool:
        return await cancel_jobs_of(context, item, parents)

    for pause_seconds in (0.0, *looks):
        await context.clock.sleep(pause_seconds)
        if await retrying(
            cancelled,
            clock=context.clock,
            backoff=_backoff(),
            attempts=TRIES_AFTER_DEATH,
            retry_if=lambda error: isinstance(error, LaunchError),
            tell=_tell,
        ):
            return


async def cancel_when_stopped(launch: Launch) -> None:
    """Cancel the job once somebody wants its end and the grace for the run to end itself is over."""
    await launch.stop_requested.wait()
    assert launch.stop is not None
    clock, log = launch.context.clock, run_log()
    log.info("Stop requested by %s; cancelling in %.0f s", launch.stop.who, launch.stop.grace_seconds)
    await clock.sleep(launch.stop.grace_seconds)
    asked_at = clock.monotonic()
    while True:
        assert launch.job is not None
        if launch.job.launch_state is not LaunchState.CANCELLING:
            await _cancel_until_taken(launch.context, launch.job.name)
        await clock.sleep(CANCEL_AGAIN_SECONDS)
        waited_seconds = clock.monotonic() - asked_at
        if waited_seconds >= CANCEL_ALARM_SECONDS:
            log.error("%s has not ended %.0f s after its cancellation", launch.job.name, waited_seconds)


async def _cancel_until_taken(context: QueueContext, job_name: str) -> None:
    await retrying(
        lambda: cancel_job(context, job_name),
        clock=context.clock,
        backoff=_backoff(),
        attempts=None,
        retry_if=lambda error: isinstance(error, LaunchError),
        tell=_tell,
    )


def _backoff() -> Backoff:
    return Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)


def _tell(error: BaseException, pause_seconds: float) -> None:
    run_log().warning("The job could not be cancelled, again in %.0f s: %s", pause_seconds, error)
