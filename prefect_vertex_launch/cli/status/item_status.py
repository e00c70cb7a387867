"""One run queue item as the three systems see it, and the one line that says why it is where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect.client.schemas.objects import FlowRun
from prefect.utilities.urls import url_for

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.core.diagnosis import console_url, diagnose, logs_url
from prefect_vertex_launch.core.states import JobRecord, LaunchState
from prefect_vertex_launch.launch.final_state import summary_of
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.notify import run_url

_WHY = {
    LaunchState.SUBMITTED: "Vertex AI has the job",
    LaunchState.QUEUED: "Vertex AI holds the job in its own queue: no capacity or quota yet",
    LaunchState.PENDING: "Vertex AI prepares the machines",
    LaunchState.RUNNING: "the job runs",
    LaunchState.PAUSED: "Vertex AI paused the job",
    LaunchState.CANCELLING: "the job is being cancelled",
}


@dataclass(frozen=True, slots=True)
class ItemStatus:
    """One run queue item, as the three systems see it.

    `state` is one word for all of them: `waiting` and `leased` in the queue, a state of
    `LaunchState` from then on, or the name of its flow run's final state. `age_seconds` counts from
    the moment it left the queue; W&B does not say when an item was pushed.
    """

    queue: str
    item: str
    run: str
    state: str
    why: str
    created: str | None = None
    age_seconds: float | None = None
    run_id: str | None = None
    job: str | None = None
    item_state: str | None = None
    job_state: str | None = None
    prefect_state: str | None = None
    wandb_url: str | None = None
    vertex_url: str | None = None
    logs_url: str | None = None
    prefect_url: str | None = None


def launched_status(
    block: VertexLaunchQueue, flow_run: FlowRun, jobs: Mapping[str, JobRecord], *, all_read: bool
) -> ItemStatus:
    """Return the status of a launched item, from its flow run and the jobs by item key.

    `all_read` says whether every system could be read: only then is a missing job known to be missing.
    """
    item = QueueItem.model_validate(flow_run.parameters["item"])
    job = jobs.get(block.identity.item_key(item.item_id))
    run = item.run
    created = created_at(flow_run)
    return ItemStatus(
        queue=f"{block.entity}/{block.queue}",
        item=item.item_id,
        run=flow_run.name,
        state=_state(flow_run, job),
        why=_why(flow_run, job, all_read=all_read),
        created=created.isoformat(timespec="seconds"),
        age_seconds=round((datetime.now(UTC) - created).total_seconds(), 1),
        run_id=run.run_id if run else None,
        job=job.job_id if job else None,
        job_state=job.launch_state.value if job else None,
        prefect_state=flow_run.state.name if flow_run.state is not None else None,
        wandb_url=run_url(block.wandb_credentials.base_url, run) if run and job else None,
        vertex_url=console_url(job.name) if job else None,
        logs_url=logs_url(job.name) if job else None,
        prefect_url=url_for(flow_run),
    )


def _state(flow_run: FlowRun, job: JobRecord | None) -> str:
    if job is not None:
        return job.launch_state.value
    state = flow_run.state
    if state is None or not state.is_final():
        return LaunchState.CLAIMED.value
    return (state.name or state.type.value).lower()


def _why(flow_run: FlowRun, job: JobRecord | None, *, all_read: bool) -> str:
    state = flow_run.state
    first_line = summary_of(state.message or "") if state is not None else ""
    if state is not None and state.is_crashed():
        return f"its agent crashed; the next one goes on ({first_line})"
    if state is not None and state.name == "Refused":
        return _all_problems(state.message or "")
    if state is not None and (state.is_final() or (state.name or "").startswith("WaitingFor")):
        return first_line
    if job is not None:
        return _why_of_job(job)
    return "its job is being submitted" if all_read else "its job, if there is one, could not be read"


def _why_of_job(job: JobRecord) -> str:
    if job.launch_state is LaunchState.CANCELLED:
        return "the job is cancelled; who wanted that is being found out"
    if job.is_terminal:
        return diagnose(job).summary
    return _WHY.get(job.launch_state, f"the job is {job.launch_state.value}")


def _all_problems(message: str) -> str:
    """Return a refusal in one line; of several problems, their number and the first."""
    first, *others = message.splitlines() or [""]
    return f"{first} {others[0].strip()}" if others else first


def created_at(flow_run: FlowRun) -> datetime:
    """Return when the item left the queue."""
    return flow_run.created or datetime.now(UTC)
