"""The links on a launch's page in Prefect: to its W&B run, and to its job in the Vertex AI console."""

from __future__ import annotations

import httpx

from prefect_vertex_launch.core.clock import sleep_until
from prefect_vertex_launch.core.diagnosis import console_url
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.run_log import run_log
from prefect_vertex_launch.wandb.queue import RunPath

LINKS_WAIT_SECONDS = 15.0


async def show_links(launch: Launch) -> None:
    """Leave links to the W&B run and the Vertex console on the flow run's page, once for each job.

    They come after the starts of a burst, or after fifteen seconds.
    """
    assert launch.job is not None
    job = launch.job
    if job.name in launch.told:
        return
    launch.told.add(job.name)
    await sleep_until(launch.context.burst_is_over, LINKS_WAIT_SECONDS, launch.context.clock)
    try:
        await _create_links(launch, job)
    except httpx.HTTPError as error:
        run_log().warning("The links could not be left: %s", error)


async def _create_links(launch: Launch, job: JobRecord) -> None:
    assert launch.run is not None
    if not launch.ended:
        await launch.context.page.leave_link(
            run_url(launch.context.block.wandb_credentials.base_url, launch.run),
            f"W&B run {launch.run.run_id}",
            f"Run {launch.run.run_id} of {launch.run.entity}/{launch.run.project}.",
        )
    await launch.context.page.leave_link(
        console_url(job.name), f"CustomJob {job.job_id}", f"{job.display_name} in the Vertex AI console."
    )


def run_url(base_url: str, run: RunPath) -> str:
    """Return the run's page; W&B's own API host has its pages on another one."""
    app_url = "https://wandb.ai" if base_url.rstrip("/") == "https://api.wandb.ai" else base_url.rstrip("/")
    return f"{app_url}/{run.entity}/{run.project}/runs/{run.run_id}"
