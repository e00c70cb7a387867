"""The step `report`: how a launch ended is told to W&B, left as an artifact and emitted as an event.

Every end has a category (`core.diagnosis.Category`): it is in the flow run's state message, in
the item's failure at W&B, in an artifact, and in the event `vertex-launch.launch.ended`, by which a
Prefect automation can act on it.
"""

from __future__ import annotations

from prefect_vertex_launch.core.clock import sleep_until
from prefect_vertex_launch.core.diagnosis import Category, Diagnosis, console_url, logs_url
from prefect_vertex_launch.core.errors import LaunchError, NotFound, PermissionDenied
from prefect_vertex_launch.core.foreign_text import as_markdown, lines_as_markdown
from prefect_vertex_launch.core.states import SUCCESS
from prefect_vertex_launch.jobspec.entities import is_own_or_allowed
from prefect_vertex_launch.launch import stop_requests
from prefect_vertex_launch.launch.attempts import diagnose_attempt
from prefect_vertex_launch.launch.final_state import CANCELLED, diagnosis_of, explain
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.notify import AGENT_STAGE, RUN_STAGE, fail, warn
from prefect_vertex_launch.launch.run_log import run_log

# How long a run may need at W&B to show up after its container has ended: 1, 2, 4, … seconds,
# as W&B's own agent waits, up to the block's `init_grace_seconds`.
FIRST_LOOK_SECONDS = 1.0
ENDED_EVENT = "vertex-launch.launch.ended"


async def report(launch: Launch) -> str:
    """Tell W&B how the launch ended, or why it is refused; return one line that says it.

    Returns none if that is not ours to say: the launch is another agent's by now, or may be. A run that
    succeeded but never called `wandb.init` fails its item, as W&B's own agent does: nobody would find the run
    otherwise.
    """
    if launch.refusal is None:
        await stop_requests.ask_who(launch)
        if launch.job is not None and launch.job.launch_state in SUCCESS:
            launch.run_showed_up = await _run_shows_up(launch)
            if not launch.run_showed_up and launch.leave.is_set():
                return ""  # the next agent looks for it
    diagnosis = diagnosis_of(launch)
    if diagnosis.category is not Category.SUCCEEDED:
        stage = RUN_STAGE if launch.job and launch.refusal is None else AGENT_STAGE
        if not await fail(launch, explain(launch, diagnosis), stage=stage):
            return ""
        await _leave_artifact(launch, diagnosis)
        if diagnosis.category not in CANCELLED:
            await _cancel_scheduled_sweep(launch)
    _emit(launch, diagnosis)
    return diagnosis.summary


async def _run_shows_up(launch: Launch) -> bool:
    """Whether the run of a job that succeeded is at W&B; True also where nobody here may know.

    A launch that is to be left is not waited for.
    """
    context, run = launch.context, launch.run
    assert run is not None
    waited_seconds, pause_seconds = 0.0, FIRST_LOOK_SECONDS
    while True:
        try:
            state = await context.wandb.read_run_state(run.entity, run.project, run.run_id)
        except (NotFound, PermissionDenied) as error:
            await warn(launch, str(error))
            return True
        if state is not None and state != "pending":
            return True
        if waited_seconds >= context.block.init_grace_seconds:
            return False
        if await sleep_until(launch.leave, pause_seconds, context.clock):
            return False
        waited_seconds += pause_seconds
        pause_seconds *= 2


async def _cancel_scheduled_sweep(launch: Launch) -> None:
    """Cancel the sweep of a scheduler that failed, as W&B's agent does: nothing would go on with it."""
    spec, block = launch.item.spec, launch.context.block
    if spec is None or spec.scheduled_sweep is None:
        return
    if not is_own_or_allowed(spec.entity, block.entity, block.allowed_entities):
        run_log().warning("Sweep %s of %s is left alone", spec.scheduled_sweep, spec.entity)
        return
    try:
        await launch.context.wandb.cancel_sweep(spec.entity, spec.project, spec.scheduled_sweep)
    except LaunchError as error:
        run_log().warning("Sweep %s could not be cancelled: %s", spec.scheduled_sweep, error)


async def _leave_artifact(launch: Launch, diagnosis: Diagnosis) -> None:
    try:
        summary = as_markdown(launch.clean(diagnosis.summary))
        await launch.context.page.leave_text(_as_markdown(launch, diagnosis), summary)
    except Exception as error:  # noqa: BLE001 - what is only shown must not end anything
        run_log().warning("The diagnosis could not be left in Prefect: %s", error)


def _emit(launch: Launch, diagnosis: Diagnosis) -> None:
    launch.context.page.emit(
        ENDED_EVENT,
        {
            "prefect.resource.id": f"prefect.flow-run.{launch.flow_run_id}",
            "prefect.resource.name": launch.item.title,
            "vertex-launch.category": diagnosis.category.value,
            "vertex-launch.queue": f"{launch.context.block.entity}/{launch.context.block.queue}",
        },
        {
            "category": diagnosis.category.value,
            "summary": launch.clean(diagnosis.summary),
            "attempts": launch.attempt.number,
            "item": launch.item.item_id,
            "run": launch.run.run_id if launch.run else None,
            "job": launch.job.name if launch.job else None,
        },
    )


def _as_markdown(launch: Launch, diagnosis: Diagnosis) -> str:
    def shown(text: str) -> str:
        return lines_as_markdown(launch.clean(text))

    rows = [("Category", f"`{diagnosis.category.value}`"), ("Item", shown(launch.item.item_id))]
    if launch.run is not None:
        rows.append(("Run", shown(f"{launch.run.entity}/{launch.run.project}/{launch.run.run_id}")))
    if job := launch.job:
        rows += [
            ("Job", f"[{shown(job.name)}]({console_url(job.name)})"),
            ("Logs", f"[Cloud Logging]({logs_url(job.name)})"),
            (
                "Vertex AI said",
                as_markdown(f"{launch.clean(job.error_message)} (code {job.error_code})")
                if job.error_message
                else "nothing",
            ),
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    texts = (shown(diagnosis.detail), shown(diagnosis.remedy))
    parts = [f"# {as_markdown(launch.clean(diagnosis.summary))}", *texts, f"| | |\n|---|---|\n{table}"]
    if launch.ended:
        parts.append(_attempts_table(launch))
    return "\n\n".join(part for part in parts if part) + "\n"


def _attempts_table(launch: Launch) -> str:
    jobs = (*launch.ended, launch.job) if launch.job is not None else launch.ended
    lines = [
        f"| {number} | [{job.job_id}]({console_url(job.name)}) | {job.launch_state.value} "
        f"| {as_markdown(launch.clean(diagnose_attempt(launch, job).summary))} |"
        for number, job in enumerate(jobs, start=1)
    ]
    return "\n".join(["| Attempt | Job | Ended | Why |", "|---|---|---|---|", *lines])
