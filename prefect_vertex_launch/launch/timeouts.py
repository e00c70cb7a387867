"""What is done while a launch waits: for quota, for machines, for its job's end.

Waiting is not failing. A queue can bound it by two timeouts of its block: one for the wait for quota
and machines, one for a program that runs and never shows up at W&B. Neither is on by default.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from math import inf

from prefect_vertex_launch.core.clock import sleep_until_any
from prefect_vertex_launch.core.errors import LaunchError, NotFound, OverQuota, PermissionDenied
from prefect_vertex_launch.core.retry import asked_pause_seconds
from prefect_vertex_launch.core.states import JobRecord, LaunchState, Requester, StopRequest
from prefect_vertex_launch.launch.find_jobs import diagnose_attempt
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.notify import RUNNING, show, warn
from prefect_vertex_launch.launch.queue_context import LaunchSession
from prefect_vertex_launch.launch.run_log import run_log
from prefect_vertex_launch.vertex.job_watcher import OnChange

MAX_QUOTA_PAUSE_SECONDS = 300.0
MAX_RATE_PAUSE_SECONDS = 60.0
# Vertex AI's cancel is best effort: one that shows no effect for so long is sent again.
CANCEL_AGAIN_SECONDS = 60.0
CANCEL_ALARM_SECONDS = 600.0
LOOK_AGAIN_SECONDS = 30.0

_WAITS = frozenset({LaunchState.SUBMITTED, LaunchState.QUEUED, LaunchState.PENDING})


async def pause(session: LaunchSession, live: LiveLaunch, seconds: float) -> bool:
    """Wait, but no longer than until a hand-over or a stop is asked for; return whether one is."""
    return await sleep_until_any([live.leave, live.stop_requested], seconds, session.clock)


class QuotaWait:
    """The wait of one launch for a quota: at first as long as between two looks at the jobs, then longer."""

    def __init__(self, session: LaunchSession, live: LiveLaunch) -> None:
        self._session = session
        self._live = live
        ended = live.ended[-1].end_time if live.ended else None
        self._since = ended or live.created or session.clock.now()
        self._pause_seconds = session.block.watch_seconds

    async def again(self, error: OverQuota) -> bool:
        """Wait before the next try; False if there is to be none, because somebody asked for an end."""
        session, live = self._session, self._live
        # The wait for its slot is none for a quota.
        since = max(self._since, live.slot.taken or self._since)
        waited_seconds = (session.clock.now() - since).total_seconds()
        left_seconds = (session.block.queueing_timeout_seconds or inf) - waited_seconds
        if left_seconds <= 0:
            live.request_stop(StopRequest(Requester.QUEUEING_TIMEOUT, session.clock.now(), grace_seconds=0.0))
            return False
        longest = MAX_QUOTA_PAUSE_SECONDS if error.is_capacity else MAX_RATE_PAUSE_SECONDS
        pause_seconds = max(min(self._pause_seconds, longest), asked_pause_seconds(error))
        self._pause_seconds *= 2
        run_log().info("Waiting %.0f s for quota: %s", pause_seconds, error)
        await show(session, live, "WaitingForQuota", f"No job yet: {error}")
        if waited_seconds >= session.block.long_wait_seconds:
            await warn(session, live, f"Waiting for quota since {_time(since)}: {error}")
        jittered_seconds = pause_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        return not await pause(session, live, min(jittered_seconds, left_seconds))


def on_change(session: LaunchSession, live: LiveLaunch) -> OnChange:
    """Return what is to be done when a job's state has changed."""
    log = run_log()

    async def changed(job: JobRecord) -> None:
        before, live.job = live.job, job
        live.job_changed.set()
        log.info("CustomJob %s is %s", job.job_id, job.launch_state)
        if before is not None and before.launch_state is LaunchState.RUNNING and job.launch_state in _WAITS:
            await warn(
                session, live,
                f"Vertex AI starts {job.name} again since {_time(job.update_time)}: "
                "its machines or its program had failed",
            )  # fmt: skip
        if job.launch_state is LaunchState.RUNNING:
            await show(session, live, RUNNING, "The job runs.")

    return changed


def duties(session: LaunchSession, live: LiveLaunch) -> list[Callable[[], Awaitable[None]]]:
    """Return what has to be looked after while the launch's job is under way."""
    block = session.block
    due: list[Callable[[], Awaitable[None]]] = [lambda: _stop_when_asked(session, live)]
    if live.job is not None and live.job.start_time is None:
        due.append(lambda: _tell_of_long_wait(session, live))
        if (limit_seconds := block.queueing_timeout_seconds) is not None:
            due.append(lambda: _end_long_queueing(session, live, limit_seconds))
    if (start_seconds := block.start_timeout_seconds) is not None:
        due.append(lambda: _end_slow_start(session, live, start_seconds))
    return due


async def tell_of_relaunch(session: LaunchSession, live: LiveLaunch) -> None:
    """Say at W&B and in Prefect that the run is launched again, after which end and how often so far."""
    diagnosis = diagnose_attempt(session, live, live.ended[-1])
    where = f" by fallback {live.attempt.plan}" if live.attempt.plan else ""
    await warn(
        session, live,
        f"Launched again{where}, as attempt {live.attempt.number} of this run, because {live.ended[-1].name} "
        f"ended ({diagnosis.category.value}): {diagnosis.summary}",
    )  # fmt: skip


async def _tell_of_long_wait(session: LaunchSession, live: LiveLaunch) -> None:
    job = await _still_waiting(session, live, session.block.long_wait_seconds)
    if job is not None:
        message = (
            f"{job.name} waits for quota or machines since {_time(job.create_time)}; it is "
            f"{job.launch_state.value} at Vertex AI. It goes on by itself when there are any."
        )
        await show(session, live, "WaitingForCapacity", message)
        await warn(session, live, message)


async def _end_long_queueing(session: LaunchSession, live: LiveLaunch, limit_seconds: float) -> None:
    job = await _still_waiting(session, live, limit_seconds)
    if job is not None:
        live.request_stop(StopRequest(Requester.QUEUEING_TIMEOUT, session.clock.now(), grace_seconds=0.0))


async def _end_slow_start(session: LaunchSession, live: LiveLaunch, limit_seconds: float) -> None:
    """End a job whose program runs but does not call `wandb.init` in time."""
    assert live.job is not None
    while live.job.start_time is None:
        live.job_changed.clear()
        await live.job_changed.wait()
    await _sleep_past(session, live.job.start_time, limit_seconds)
    assert live.run is not None
    while True:
        try:
            state = await session.wandb.read_run_state(*_parts(live))
        except (NotFound, PermissionDenied):
            return  # nobody here may know whether it is there
        except LaunchError as error:
            # Not known is not missing: a run is given up only when W&B says that it is not there.
            run_log().warning("W&B could not be asked for run %s: %s", live.run.run_id, error)
            await session.clock.sleep(LOOK_AGAIN_SECONDS)
            continue
        if state in {None, "pending"}:
            live.request_stop(StopRequest(Requester.START_TIMEOUT, session.clock.now(), grace_seconds=0.0))
        return


async def _still_waiting(session: LaunchSession, live: LiveLaunch, seconds: float) -> JobRecord | None:
    """Return the job if it still waits to be started when it has waited for so long."""
    assert live.job is not None
    await _sleep_past(session, live.job.create_time or session.clock.now(), seconds)
    job = live.job
    return job if job.start_time is None and job.launch_state in _WAITS else None


async def _sleep_past(session: LaunchSession, since: datetime, seconds: float) -> None:
    passed_seconds = (session.clock.now() - since).total_seconds()
    await session.clock.sleep(max(0.0, seconds - passed_seconds))


async def _stop_when_asked(session: LaunchSession, live: LiveLaunch) -> None:
    """Cancel the job once somebody wants its end and the grace for the run to end itself is over."""
    await live.stop_requested.wait()
    assert live.stop is not None
    log = run_log()
    log.info("Stop requested by %s; cancelling in %.0f s", live.stop.who, live.stop.grace_seconds)
    await session.clock.sleep(live.stop.grace_seconds)
    asked_at = session.clock.monotonic()
    while True:
        assert live.job is not None
        if live.job.launch_state is not LaunchState.CANCELLING:
            await _cancel(session, live.job.name)
        await session.clock.sleep(CANCEL_AGAIN_SECONDS)
        waited_seconds = session.clock.monotonic() - asked_at
        if waited_seconds >= CANCEL_ALARM_SECONDS:
            log.error("%s has not ended %.0f s after its cancellation", live.job.name, waited_seconds)


async def _cancel(session: LaunchSession, job_name: str) -> None:
    """Ask for a job's end until Vertex AI has taken the request."""
    region = await session.regions.of(job_name)
    pause_seconds = 1.0
    while True:
        try:
            await region.jobs.cancel(job_name)
        except NotFound:
            break  # the watcher finds out that it is gone
        except LaunchError as error:
            run_log().warning("%s could not be cancelled yet: %s", job_name, error)
            await session.clock.sleep(pause_seconds)
            pause_seconds = min(60.0, pause_seconds * 4)
        else:
            break
    region.watcher.wake()


def _parts(live: LiveLaunch) -> tuple[str, str, str]:
    assert live.run is not None
    return live.run.entity, live.run.project, live.run.run_id


def _time(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment is not None else "a while ago"
