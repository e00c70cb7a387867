"""How a launch ended: told to W&B, shown in Prefect, explained to a person."""

from __future__ import annotations

from typing import Any

import httpx
from prefect import State, get_run_logger
from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact
from prefect.states import Cancelled, Completed, Failed

from flows.session import LaunchSession, LiveLaunch
from vertex_launch.clock import sleep_until
from vertex_launch.diagnosis import Diagnosis, console_url, diagnose, logs_url
from vertex_launch.lifecycle import JobRecord, LaunchState
from vertex_launch.wandb_queue import RunPath

# How long a run may need at W&B to show up after its container has ended: 1, 2, 4, … seconds,
# as W&B's own agent waits, up to the block's `init_grace_seconds`.
FIRST_LOOK_SECONDS = 1.0
LINKS_WAIT_SECONDS = 15.0

_SUCCESS = frozenset({LaunchState.SUCCEEDED, LaunchState.PARTIALLY_SUCCEEDED})


async def show_links(session: LaunchSession, live: LiveLaunch) -> None:
    """Leave links to the W&B run and the Vertex console on the flow run's page, if Prefect takes them.

    They come after the starts of a burst, or after fifteen seconds.
    """
    await sleep_until(session.calm, LINKS_WAIT_SECONDS, session.clock)
    try:
        await _create_links(session, live)
    except httpx.HTTPError as error:
        get_run_logger().warning("The links could not be left: %s", error)


async def _create_links(session: LaunchSession, live: LiveLaunch) -> None:
    assert live.run is not None
    assert live.job is not None
    await acreate_link_artifact(
        link=run_url(session.block.wandb_credentials.base_url, live.run),
        link_text=f"W&B run {live.run.run_id}",
        description=f"Run {live.run.run_id} of {live.run.entity}/{live.run.project}.",
    )
    await acreate_link_artifact(
        link=console_url(live.job.name),
        link_text=f"CustomJob {live.job.job_id}",
        description=f"{live.job.display_name} in the Vertex AI console.",
    )


async def report(session: LaunchSession, live: LiveLaunch) -> str:
    """Tell W&B how the job ended; return one line that says it.

    A run that succeeded but never called `wandb.init` fails its item, as W&B's own agent does:
    nobody would find the run otherwise.
    """
    assert live.job is not None
    diagnosis = diagnose(live.job)
    if live.job.launch_state in _SUCCESS:
        if not await _run_shows_up(session, live):
            message = (
                "The submitted job exited successfully but failed to call wandb.init. "
                f"Its logs: {logs_url(live.job.name)}"
            )
            get_run_logger().warning(message)
            await session.wandb.fail(live.item.item_id, message, stage="run")
            return message
        return diagnosis.summary
    await session.wandb.fail(live.item.item_id, explain(live, diagnosis), stage="run")
    await acreate_markdown_artifact(
        markdown=_as_markdown(live.job, diagnosis, live), description=diagnosis.summary
    )
    return diagnosis.summary


def final_state(live: LiveLaunch) -> State[Any]:
    """Return the state in which the flow run of an ended job ends."""
    assert live.job is not None
    diagnosis = diagnose(live.job)
    state = live.job.launch_state
    if state in _SUCCESS:
        return Completed(message=diagnosis.summary)
    if state is LaunchState.CANCELLED:
        return Cancelled(message=explain(live, diagnosis))
    return Failed(
        name="Expired" if state is LaunchState.EXPIRED else "Failed", message=explain(live, diagnosis)
    )


def explain(live: LiveLaunch, diagnosis: Diagnosis) -> str:
    """Return what happened, why, who wanted it, and what to do, as one paragraph."""
    assert live.job is not None
    parts = [f"{live.job.name} {live.job.launch_state.value}: {diagnosis.summary}"]
    if live.stop is not None:
        parts.append(f"Stopped on request of {_WHO.get(live.stop.who, live.stop.who)}.")
    parts += [part for part in (diagnosis.detail, diagnosis.remedy) if part]
    parts.append(f"Logs: {logs_url(live.job.name)}")
    return " ".join(parts)


_WHO = {"wandb": "a user at W&B", "prefect": "a user in Prefect"}


def run_url(base_url: str, run: RunPath) -> str:
    """Return the run's page; W&B's own API host has its pages on another one."""
    app_url = "https://wandb.ai" if base_url.rstrip("/") == "https://api.wandb.ai" else base_url.rstrip("/")
    return f"{app_url}/{run.entity}/{run.project}/runs/{run.run_id}"


async def _run_shows_up(session: LaunchSession, live: LiveLaunch) -> bool:
    assert live.run is not None
    waited_seconds, pause_seconds = 0.0, FIRST_LOOK_SECONDS
    while True:
        state = await session.wandb.read_run_state(live.run.entity, live.run.project, live.run.run_id)
        if state is not None and state != "pending":
            return True
        if waited_seconds >= session.block.init_grace_seconds:
            return False
        await session.clock.sleep(pause_seconds)
        waited_seconds += pause_seconds
        pause_seconds *= 2


def _as_markdown(job: JobRecord, diagnosis: Diagnosis, live: LiveLaunch) -> str:
    assert live.run is not None
    rows = [
        ("Category", f"`{diagnosis.category.value}`"),
        ("Job", f"[{job.name}]({console_url(job.name)})"),
        ("Logs", f"[Cloud Logging]({logs_url(job.name)})"),
        ("Run", f"`{live.run.entity}/{live.run.project}/{live.run.run_id}`"),
        (
            "Vertex AI said",
            f"`{job.error_message}` (code {job.error_code})" if job.error_message else "nothing",
        ),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"# {diagnosis.summary}\n\n{diagnosis.detail}\n\n{diagnosis.remedy}\n\n| | |\n|---|---|\n{table}\n"
