"""How a launch ended: told to W&B, shown in Prefect, explained to a person.

Every end has a category (`core.diagnosis.Category`): it is in the flow run's state message, in
the item's failure at W&B, in an artifact, and in the event `vertex-launch.launch.ended`, by which a
Prefect automation can act on it.
"""

from __future__ import annotations

from typing import Any

import httpx
from prefect import State
from prefect.states import Cancelled, Completed, Failed

from prefect_vertex_launch.core.clock import sleep_until
from prefect_vertex_launch.core.diagnosis import (
    Category,
    Diagnosis,
    console_url,
    logs_url,
    no_run,
    refused,
    stopped,
)
from prefect_vertex_launch.core.errors import LaunchError, NotFound, Permanent, PermissionDenied
from prefect_vertex_launch.core.states import SUCCESS, JobRecord, Requester
from prefect_vertex_launch.launch import stop_requests
from prefect_vertex_launch.launch.find_jobs import diagnose_attempt
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.notify import AGENT_STAGE, RUN_STAGE, fail, warn
from prefect_vertex_launch.launch.queue_context import LaunchSession
from prefect_vertex_launch.launch.run_log import run_log
from prefect_vertex_launch.wandb.queue import RunPath

# How long a run may need at W&B to show up after its container has ended: 1, 2, 4, … seconds,
# as W&B's own agent waits, up to the block's `init_grace_seconds`.
FIRST_LOOK_SECONDS = 1.0
LINKS_WAIT_SECONDS = 15.0
_CATEGORY = " Category: "
ENDED_EVENT = "vertex-launch.launch.ended"
ELSEWHERE = "Elsewhere"

_CANCELLED = frozenset({Category.CANCELLED, Category.CANCELLED_ELSEWHERE})
_STATE_NAMES = {
    Category.EXPIRED: "Expired",
    Category.LOST: "Lost",
    Category.QUEUEING_TIMEOUT: "TimedOut",
    Category.START_TIMEOUT: "TimedOut",
}


async def show_links(session: LaunchSession, live: LiveLaunch) -> None:
    """Leave links to the W&B run and the Vertex console on the flow run's page, if Prefect takes them.

    They come after the starts of a burst, or after fifteen seconds.
    """
    assert live.job is not None
    job = live.job
    await sleep_until(session.calm, LINKS_WAIT_SECONDS, session.clock)
    try:
        await _create_links(session, live, job)
    except httpx.HTTPError as error:
        run_log().warning("The links could not be left: %s", error)


async def _create_links(session: LaunchSession, live: LiveLaunch, job: JobRecord) -> None:
    assert live.run is not None
    if not live.ended:
        await session.page.leave_link(
            run_url(session.block.wandb_credentials.base_url, live.run),
            f"W&B run {live.run.run_id}",
            f"Run {live.run.run_id} of {live.run.entity}/{live.run.project}.",
        )
    await session.page.leave_link(
        console_url(job.name), f"CustomJob {job.job_id}", f"{job.display_name} in the Vertex AI console."
    )


async def report(session: LaunchSession, live: LiveLaunch) -> str:
    """Tell W&B how the launch ended; return one line that says it, or none if it is not ours to say.

    A run that succeeded but never called `wandb.init` fails its item, as W&B's own agent does:
    nobody would find the run otherwise.
    """
    await stop_requests.ask_who(session, live)
    if live.job is not None and live.job.launch_state in SUCCESS:
        live.run_showed_up = await _run_shows_up(session, live)
        if not live.run_showed_up and live.leave.is_set():
            return ""  # the next agent looks for it
    diagnosis = diagnosis_of(session, live)
    if diagnosis.category is not Category.SUCCEEDED:
        stage = RUN_STAGE if live.job else AGENT_STAGE
        if not await fail(session, live, explain(live, diagnosis), stage=stage):
            return ""
        await _leave_artifact(session, live, diagnosis)
        if diagnosis.category not in _CANCELLED:
            await _cancel_scheduled_sweep(session, live)
    _emit(session, live, diagnosis)
    return diagnosis.summary


async def report_refusal(session: LaunchSession, live: LiveLaunch, message: str) -> str:
    """Fail the item with the reason why it cannot be launched, and leave the reason in Prefect.

    Returns what `report` returns.
    """
    diagnosis = refused(message)
    if not await fail(session, live, message, stage=AGENT_STAGE):
        return ""
    await _leave_artifact(session, live, diagnosis)
    await _cancel_scheduled_sweep(session, live)
    _emit(session, live, diagnosis)
    return diagnosis.summary


def refused_state(error: Permanent) -> State[Any]:
    """Return the state of a flow run whose item cannot be launched."""
    return Failed(name="Refused", message=str(error))


def elsewhere_state(error: Permanent) -> State[Any]:
    """Return the state of a flow run whose item somebody else has."""
    return Cancelled(name=ELSEWHERE, message=str(error))


def diagnosis_of(session: LaunchSession, live: LiveLaunch) -> Diagnosis:
    """Return why the launch ended as it did."""
    if live.job is None:
        assert live.stop is not None
        return stopped(live.stop)
    if live.job.launch_state in SUCCESS and not live.run_showed_up:
        return no_run(live.job)
    return diagnose_attempt(session, live, live.job)


def final_state(session: LaunchSession, live: LiveLaunch) -> State[Any]:
    """Return the state in which the flow run of an ended launch ends."""
    diagnosis = diagnosis_of(session, live)
    message = explain(live, diagnosis)
    if live.stop is not None and live.stop.who is Requester.PREFECT:
        # Prefect takes no other end of a run that was cancelled, however its job ended.
        return Cancelled(message=message)
    if diagnosis.category is Category.SUCCEEDED:
        return Completed(message=diagnosis.summary)
    if diagnosis.category in _CANCELLED:
        return Cancelled(message=message)
    return Failed(name=_STATE_NAMES.get(diagnosis.category, "Failed"), message=message)


def explain(live: LiveLaunch, diagnosis: Diagnosis) -> str:
    """Return what happened, why, who wanted it, and what to do, as one paragraph."""
    job = live.job
    what = "there was no job yet" if job is None else f"{job.name} {job.launch_state.value}"
    parts = [f"{diagnosis.summary}{_CATEGORY}{diagnosis.category.value} ({what})."]
    if live.ended:
        parts.append(f"It was attempt {live.attempt.number} of this run.")
    if diagnosis.detail:
        parts.append(f"Vertex AI said: {diagnosis.detail.rstrip('.')}.")
    if diagnosis.remedy:
        parts.append(diagnosis.remedy)
    if job is not None:
        parts.append(f"Logs: {logs_url(job.name)}")
    return " ".join(parts)


def summary_of(message: str) -> str:
    """Return what happened in one line, from what `explain` said of it."""
    return message.split(_CATEGORY, 1)[0].split("\n", 1)[0]


def run_url(base_url: str, run: RunPath) -> str:
    """Return the run's page; W&B's own API host has its pages on another one."""
    app_url = "https://wandb.ai" if base_url.rstrip("/") == "https://api.wandb.ai" else base_url.rstrip("/")
    return f"{app_url}/{run.entity}/{run.project}/runs/{run.run_id}"


async def _run_shows_up(session: LaunchSession, live: LiveLaunch) -> bool:
    """Whether the run of a job that succeeded is at W&B; True also where nobody here may know.

    A launch that is to be left is not waited for.
    """
    assert live.run is not None
    waited_seconds, pause_seconds = 0.0, FIRST_LOOK_SECONDS
    while True:
        try:
            state = await session.wandb.read_run_state(live.run.entity, live.run.project, live.run.run_id)
        except (NotFound, PermissionDenied) as error:
            await warn(session, live, str(error))
            return True
        if state is not None and state != "pending":
            return True
        if waited_seconds >= session.block.init_grace_seconds:
            return False
        if await sleep_until(live.leave, pause_seconds, session.clock):
            return False
        waited_seconds += pause_seconds
        pause_seconds *= 2


async def _cancel_scheduled_sweep(session: LaunchSession, live: LiveLaunch) -> None:
    """Cancel the sweep of a scheduler that failed, as W&B's agent does: nothing would go on with it."""
    spec = live.item.spec
    if spec is None or spec.scheduled_sweep is None:
        return
    try:
        await session.wandb.cancel_sweep(spec.entity, spec.project, spec.scheduled_sweep)
    except LaunchError as error:
        run_log().warning("Sweep %s could not be cancelled: %s", spec.scheduled_sweep, error)


async def _leave_artifact(session: LaunchSession, live: LiveLaunch, diagnosis: Diagnosis) -> None:
    try:
        await session.page.leave_text(_as_markdown(session, live, diagnosis), diagnosis.summary)
    except httpx.HTTPError as error:
        run_log().warning("The diagnosis could not be left in Prefect: %s", error)


def _emit(session: LaunchSession, live: LiveLaunch, diagnosis: Diagnosis) -> None:
    session.page.emit(
        ENDED_EVENT,
        {
            "prefect.resource.id": f"prefect.flow-run.{live.flow_run_id}",
            "prefect.resource.name": live.item.title,
            "vertex-launch.category": diagnosis.category.value,
            "vertex-launch.queue": f"{session.block.entity}/{session.block.queue}",
        },
        {
            "category": diagnosis.category.value,
            "summary": diagnosis.summary,
            "attempts": live.attempt.number,
            "item": live.item.item_id,
            "run": live.run.run_id if live.run else None,
            "job": live.job.name if live.job else None,
        },
    )


def _as_markdown(session: LaunchSession, live: LiveLaunch, diagnosis: Diagnosis) -> str:
    rows = [("Category", f"`{diagnosis.category.value}`"), ("Item", f"`{live.item.item_id}`")]
    if live.run is not None:
        rows.append(("Run", f"`{live.run.entity}/{live.run.project}/{live.run.run_id}`"))
    if job := live.job:
        rows += [
            ("Job", f"[{job.name}]({console_url(job.name)})"),
            ("Logs", f"[Cloud Logging]({logs_url(job.name)})"),
            (
                "Vertex AI said",
                f"`{job.error_message}` (code {job.error_code})" if job.error_message else "nothing",
            ),
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    parts = [f"# {diagnosis.summary}", diagnosis.detail, diagnosis.remedy, f"| | |\n|---|---|\n{table}"]
    if live.ended:
        parts.append(_attempts_table(session, live))
    return "\n\n".join(part for part in parts if part) + "\n"


def _attempts_table(session: LaunchSession, live: LiveLaunch) -> str:
    jobs = (*live.ended, live.job) if live.job is not None else live.ended
    lines = [
        f"| {number} | [{job.job_id}]({console_url(job.name)}) | {job.launch_state.value} "
        f"| {diagnose_attempt(session, live, job).summary} |"
        for number, job in enumerate(jobs, start=1)
    ]
    return "\n".join(["| Attempt | Job | Ended | Why |", "|---|---|---|---|", *lines])
