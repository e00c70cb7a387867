"""The step `wait`: the queue's watcher tells when the job has ended; no job is polled by itself."""

from __future__ import annotations

import asyncio

from prefect_vertex_launch.core.states import JobRecord, LaunchState
from prefect_vertex_launch.launch import find_jobs, timeouts
from prefect_vertex_launch.launch.cancel import cancel_when_stopped
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.notify import RUNNING, show, show_links, tell_of_restart
from prefect_vertex_launch.launch.run_log import run_log
from prefect_vertex_launch.vertex.job_watcher import OnChange


async def wait(launch: Launch) -> str:
    """Wait until the job has ended, or this process hands it over; return the state's name."""
    assert launch.job is not None
    showing_links = asyncio.create_task(show_links(launch, launch.job))
    while True:
        assert launch.job is not None
        if not launch.job.is_terminal and not await _watch(launch, launch.job):
            break
        if launch.item.job_name is None:
            launch.job = await find_jobs.find_last_word(launch)
        if launch.job.is_terminal:
            break
    await showing_links
    return launch.job.launch_state.value if launch.job.is_terminal else "handed over"


async def _watch(launch: Launch, job: JobRecord) -> bool:
    """Watch the launch's job until it has ended; False if the launch is handed over before."""
    launch.waited.see(job)
    region = await launch.context.regions.of(job.name)
    duties = (cancel_when_stopped, *timeouts.duties(launch))
    watch = asyncio.create_task(region.watcher.wait(job.name, _on_change(launch)))
    leaving = asyncio.create_task(launch.leave.wait())
    beside = [asyncio.ensure_future(duty(launch)) for duty in duties]
    try:
        await asyncio.wait({watch, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            launch.job = watch.result()
        return watch.done()
    finally:
        for waiter in (watch, leaving, *beside):
            waiter.cancel()


def _on_change(launch: Launch) -> OnChange:
    """Return what is to be done when the job's state has changed."""
    log = run_log()

    async def changed(job: JobRecord) -> None:
        before, launch.job = launch.job, job
        launch.job_changed.set()
        log.info("CustomJob %s is %s", job.job_id, job.launch_state)
        if (
            before is not None
            and before.launch_state is LaunchState.RUNNING
            and job.launch_state in timeouts.BEFORE_RUNNING
        ):
            await tell_of_restart(launch, job)
        if job.launch_state is LaunchState.RUNNING:
            await show(launch, RUNNING, "The job runs.")

    return changed
