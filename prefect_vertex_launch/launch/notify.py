"""What is said of an item at W&B, and of its launch in Prefect, while it is under way.

W&B shows the message of a failed item, and the file that goes with it, beside the run queue.
"""

from __future__ import annotations

from datetime import datetime
from urllib.parse import quote

from prefect.states import Running

from prefect_vertex_launch.core.clock import sleep_until
from prefect_vertex_launch.core.diagnosis import console_url
from prefect_vertex_launch.core.errors import AuthenticationFailed, LaunchError, Permanent, waiting_if_denied
from prefect_vertex_launch.core.foreign_text import as_markdown
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.launch.attempts import diagnose_attempt
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.run_log import run_log
from prefect_vertex_launch.wandb.queue import RunPath, error_file

# The stages of a failure that W&B's own agent knows: before there is a job, and after.
AGENT_STAGE = "agent"
RUN_STAGE = "run"
RUNNING = "Running"
LINKS_WAIT_SECONDS = 15.0


async def fail(launch: Launch, message: str, *, stage: str) -> bool:
    """Fail the item with a message; the whole of it is in a file too, if there is an agent to keep it.

    Returns False if nothing was said, because the launch is another agent's by now or may be. An item
    that W&B will not fail, because somebody has removed it for example, is left as it is.
    """
    message = launch.clean(message)
    if not await launch.until_sure():
        return False
    paths = await _saved(launch, message)
    if not await launch.until_sure():
        return False
    try:
        with waiting_if_denied(AuthenticationFailed):
            await launch.context.wandb.fail(launch.item.item_id, message, stage, paths)
    except Permanent as error:
        run_log().warning("W&B did not fail the item: %s", error)
    return True


async def warn(launch: Launch, message: str) -> None:
    """Attach a warning to the item, once for each message; it is not worth ending anything for."""
    message = launch.clean(message)
    if message in launch.told:
        return
    launch.told.add(message)
    run_log().warning(message)
    try:
        await launch.context.wandb.warn(launch.item.item_id, message, RUN_STAGE)
    except LaunchError as error:
        run_log().warning("W&B did not take the warning: %s", error)


async def tell_of_relaunch(launch: Launch) -> None:
    """Say at W&B and in Prefect that the run is launched again, after which end and how often so far."""
    diagnosis = diagnose_attempt(launch, launch.ended[-1])
    where = f" by fallback {launch.attempt.plan}" if launch.attempt.plan else ""
    await warn(
        launch,
        f"Launched again{where}, as attempt {launch.attempt.number} of this run, because "
        f"{launch.ended[-1].name} ended ({diagnosis.category.value}): {diagnosis.summary}",
    )


async def tell_of_restart(launch: Launch, job: JobRecord) -> None:
    """Say at W&B that Vertex AI itself starts a job again that ran already."""
    await warn(
        launch,
        f"Vertex AI starts {job.name} again since {time_text(job.update_time)}: "
        "its machines or its program had failed",
    )


def time_text(moment: datetime | None) -> str:
    """Return a moment to the second, for a person to read."""
    return moment.isoformat(timespec="seconds") if moment is not None else "a while ago"


async def show(launch: Launch, name: str, message: str) -> None:
    """Give the flow run a state of this name, so that its page says what it waits for.

    A run that somebody is cancelling keeps that state: Prefect refuses to change it.
    """
    if name == RUNNING and "state" not in launch.told:
        return
    message = launch.clean(message)
    try:
        await launch.context.page.show_state(launch.flow_run_id, Running(name=name, message=message))
    except Exception as error:  # noqa: BLE001 - what is only shown must not end anything
        run_log().warning("Prefect did not take the state %s: %s", name, error)
        return
    if name == RUNNING:
        launch.told.discard("state")
    else:
        launch.told.add("state")


async def _saved(launch: Launch, text: str) -> list[str]:
    if launch.context.agent_name is None:
        return []
    path = error_file(launch.item.item_id)
    try:
        await launch.context.wandb.upload_agent_file(launch.context.agent_name, path, text)
    except LaunchError as error:
        run_log().warning("The error file could not be left at W&B: %s", error)
        return []
    return [path]


async def show_links(launch: Launch, job: JobRecord) -> None:
    """Leave links to the W&B run and the Vertex console on the flow run's page, once for each job.

    They come after the starts of a burst, or after fifteen seconds.
    """
    if job.name in launch.told:
        return
    launch.told.add(job.name)
    await sleep_until(launch.context.burst_is_over, LINKS_WAIT_SECONDS, launch.context.clock)
    try:
        await _create_links(launch, job)
    except Exception as error:  # noqa: BLE001 - what is only shown must not end anything
        run_log().warning("The links could not be left: %s", error)


async def _create_links(launch: Launch, job: JobRecord) -> None:
    assert launch.run is not None
    if not launch.ended:
        await launch.context.page.leave_link(
            run_url(launch.context.block.wandb_credentials.base_url, launch.run),
            f"W&B run {launch.run.run_id}",
            as_markdown(f"Run {launch.run.run_id} of {launch.run.entity}/{launch.run.project}."),
        )
    await launch.context.page.leave_link(
        console_url(job.name),
        f"CustomJob {job.job_id}",
        f"{as_markdown(launch.clean(job.display_name))} in the Vertex AI console.",
    )


def run_url(base_url: str, run: RunPath) -> str:
    """Return the run's page; W&B's own API host has its pages on another one."""
    app_url = "https://wandb.ai" if base_url.rstrip("/") == "https://api.wandb.ai" else base_url.rstrip("/")
    entity, project, run_id = (quote(part, safe="") for part in (run.entity, run.project, run.run_id))
    return f"{app_url}/{entity}/{project}/runs/{run_id}"
