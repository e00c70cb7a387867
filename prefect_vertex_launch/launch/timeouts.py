"""What a queue's timeouts and long waits do beside a job that is under way.

Waiting is not failing. Two timeouts of the block can bound it: one for the wait for quota and machines, one
for a program that runs and never shows up at W&B. Neither is on by default.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prefect_vertex_launch.core.errors import LaunchError, NotFound, PermissionDenied
from prefect_vertex_launch.core.states import JobRecord, LaunchState, Requester
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.notify import show, time_text, warn
from prefect_vertex_launch.launch.run_log import run_log

LOOK_AGAIN_SECONDS = 30.0

BEFORE_RUNNING = frozenset({LaunchState.SUBMITTED, LaunchState.QUEUED, LaunchState.PENDING})

Duty = Callable[[Launch], Awaitable[None]]


def duties(launch: Launch) -> list[Duty]:
    """Return what has to be looked after while the launch's job is under way."""
    block, due = launch.context.block, list[Duty]()
    if launch.job is not None and launch.job.start_time is None:
        due.append(_tell_of_long_wait)
        if block.queueing_timeout_seconds is not None:
            due.append(_end_long_queueing)
    if block.start_timeout_seconds is not None:
        due.append(_end_slow_start)
    return due


async def _tell_of_long_wait(launch: Launch) -> None:
    job = await _still_waiting(launch, launch.context.block.long_wait_seconds)
    if job is not None:
        message = (
            f"{job.name} waits for quota or machines since {time_text(job.create_time)}; it is "
            f"{job.launch_state.value} at Vertex AI. It goes on by itself when there are any."
        )
        await show(launch, "WaitingForCapacity", message)
        await warn(launch, message)


async def _end_long_queueing(launch: Launch) -> None:
    limit_seconds = launch.context.block.queueing_timeout_seconds
    assert limit_seconds is not None
    if await _still_waiting(launch, limit_seconds) is not None:
        launch.request_end(Requester.QUEUEING_TIMEOUT)


async def _end_slow_start(launch: Launch) -> None:
    """End a job whose program runs but does not call `wandb.init` in time."""
    limit_seconds = launch.context.block.start_timeout_seconds
    assert launch.job is not None
    assert launch.run is not None
    assert limit_seconds is not None
    while launch.job.start_time is None:
        launch.job_changed.clear()
        await launch.job_changed.wait()
    await launch.context.clock.sleep(limit_seconds)
    run = launch.run
    while True:
        try:
            state = await launch.context.wandb.read_run_state(run.entity, run.project, run.run_id)
        except (NotFound, PermissionDenied):
            return  # nobody here may know whether it is there
        except LaunchError as error:
            # Not known is not missing: a run is given up only when W&B says that it is not there.
            run_log().warning("W&B could not be asked for run %s: %s", run.run_id, error)
            await launch.context.clock.sleep(LOOK_AGAIN_SECONDS)
            continue
        if state in {None, "pending"}:
            launch.request_end(Requester.START_TIMEOUT)
        return


async def _still_waiting(launch: Launch, seconds: float) -> JobRecord | None:
    """Return the job if it still waits to be started when it has waited for so long."""
    assert launch.job is not None
    await launch.context.clock.sleep(max(0.0, seconds - launch.waited.known_seconds(launch.job)))
    job = launch.job
    return job if job.start_time is None and job.launch_state in BEFORE_RUNNING else None
