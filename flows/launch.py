"""One run queue item, from claim to report, as a Prefect flow.

    claim    the item is acknowledged at W&B under a run id that is fixed here
    render   run spec + queue configuration → CustomJob; what cannot be launched fails the item
    submit   the job is looked for by its label and created only if it is not there
    wait     the session's watcher resolves it; nothing is polled per job
    report   how it ended, told to W&B, as artifacts and as the flow run's state

Render, submit and wait are taken again for each further attempt. Each step can be repeated: a run
that a crash interrupted is started again from the top by the next agent, finds its claim and its
job, and goes on. The end of this process never ends the job.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.exceptions import Abort
from prefect.states import Completed
from prefect.tasks import Task

from flows import attempts, outcome, preparation, take, waiting
from flows.live_launch import LiveLaunch
from flows.notices import show, warn
from flows.queue_item import QueueItem, run_of
from flows.session import LaunchSession, current_session, enter_session, own_flow_run_id
from flows.tags import item_of
from vertex_launch.clock import sleep_until
from vertex_launch.errors import (
    Conflict,
    InvalidRunSpec,
    NotFound,
    OutcomeUnknown,
    OverQuota,
    Permanent,
    Transient,
)
from vertex_launch.lifecycle import JobRecord
from vertex_launch.render import ITEM_LABEL, launch_key
from vertex_launch.run_spec import parse_run_spec
from vertex_launch.vertex_types import JobState

# A step is tried again for about half a minute; a remote system that is away for longer makes the whole
# launch wait and start over, for as long as it takes.
RETRY_DELAYS_SECONDS = [2.0, 5.0, 10.0, 20.0]
FIRST_PAUSE_SECONDS = 30.0
MAX_PAUSE_SECONDS = 300.0


async def may_pass(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is worth another try."""
    try:
        await state.aresult()
    except (Transient, OutcomeUnknown):
        return True
    except Exception:  # noqa: BLE001 - whatever else it is, another try would not cure it
        return False
    return False


_step = {
    "retries": len(RETRY_DELAYS_SECONDS),
    "retry_delay_seconds": RETRY_DELAYS_SECONDS,
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": may_pass,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(name="claim", **_step)
async def claim(item_id: str) -> str:
    """Read the item's run spec and acknowledge it at W&B; return the run id.

    Raises InvalidRunSpec before the item is claimed, and Conflict when another agent has it.
    """
    session, live = _live(item_id)
    if problems := live.item.as_problems():
        raise InvalidRunSpec(problems)
    run = run_of(parse_run_spec(live.item.payload, item_id=item_id), item_id)
    # The item of a job that runs already was claimed by the agent that made it; when that one was stopped
    # it may have failed the item, and nobody can claim it any more.
    if live.item.job_name is None:
        # Dying here leaves the item leased: it returns to the queue by itself and keeps this flow run.
        await session.wandb.acknowledge(item_id, run.run_id)
    live.run = run
    return run.run_id


@task(name="render", **_step)
async def render_job(item_id: str) -> dict[str, Any]:
    """Make the CustomJob from run spec and queue configuration; return it without its secrets.

    Raises InvalidQueueConfig or InvalidRunSpec with everything that is wrong, before any request
    to Vertex AI.
    """
    session, live = _live(item_id)
    prepared = await preparation.prepare(session, live)
    rendering = attempts.render_attempt(session, live)
    if warnings := (*prepared.config.warnings, *rendering.warnings):
        await warn(session, live, "\n".join(warnings))
    return rendering.redacted()


@task(name="submit", **_step)
async def submit(item_id: str) -> str:
    """Create the CustomJob unless there is one for this item already; return its resource name.

    Waits as long as a quota is used up. Returns no name when there is no job because somebody asked
    for the launch's end or this process hands it over. Raises Refused with Vertex AI's own words when
    it will not have the job.
    """
    session, live = _live(item_id)
    quota = waiting.QuotaWait(session, live)
    while True:
        live.job = await attempts.find(session, live)
        if live.job is None and not await preparation.may_start(session, live):
            return ""
        try:
            live.job = live.job or await attempts.create(session, live)
        except OverQuota as error:
            if await quota.again(error):
                continue
            return ""
        # A thousand launches wait at once: what the job was made of is made again should it be needed.
        live.prepared = None
        return live.job.name


@task(name="find", **_step)
async def find_running_job(item_id: str) -> str:
    """Read the job that W&B's own agent had made of the item; return its resource name."""
    session, live = _live(item_id)
    name = live.item.job_name
    assert name is not None
    region = await session.regions.of(name)
    try:
        live.job = await region.jobs.get(name)
    except NotFound:
        live.job = JobRecord(name, JobState.JOB_STATE_UNSPECIFIED, is_gone=True)
    return live.job.name


@task(name="wait", **_step)
async def wait(item_id: str) -> str:
    """Wait until the job has ended, or this process hands it over; return the state's name."""
    session, live = _live(item_id)
    assert live.job is not None
    if live.job.is_terminal:
        return live.job.launch_state.value
    region = await session.regions.of(live.job.name)
    watch = asyncio.create_task(region.watcher.wait(live.job.name, waiting.on_change(session, live)))
    handover = asyncio.create_task(session.handover.wait())
    beside = [asyncio.ensure_future(duty()) for duty in waiting.duties(session, live)]
    try:
        await asyncio.wait({watch, handover}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            live.job = watch.result()
            return live.job.launch_state.value
        return "handed over"
    finally:
        for waiter in (watch, handover, *beside):
            waiter.cancel()


@task(name="report", **_step)
async def report(item_id: str) -> str:
    """Tell W&B how the job ended and leave links and a diagnosis; return the diagnosis' summary."""
    session, live = _live(item_id)
    return await outcome.report(session, live)


@task(name="refuse", **_step)
async def refuse(item_id: str, message: str) -> None:
    """Fail the item at W&B with the reason why it cannot be launched."""
    session, live = _live(item_id)
    await outcome.report_refusal(session, live, message)


@flow(name="launch", validate_parameters=True, persist_result=False, log_prints=False)
async def launch(queue: str, item: QueueItem | None = None) -> State[Any]:
    """Launch one run of a W&B queue on Vertex AI and follow it to its end.

    Args:
        queue: Name of the VertexLaunchQueue block.
        item: The run queue item; left empty, the next one is taken from the queue.
    """
    async with enter_session(queue) as session:
        if item is None:
            async with take.next_item(session) as taken:
                if taken is None:
                    return Completed(name="Idle", message=f"Nothing is queued on {session.block.queue}.")
                return await _carry(session, taken)
        known = session.live.get(item.item_id)
        if known is not None:
            return await _carry(session, known)
        live = LiveLaunch(item=item, flow_run_id=own_flow_run_id())
        live.may_submit.set()
        return await _carry(session, live)


async def _carry(session: LaunchSession, live: LiveLaunch) -> State[Any]:
    item_id = live.item.item_id
    session.live[item_id] = live
    try:
        return await _steps_until_settled(item_id, session, live)
    except Conflict as error:
        return outcome.elsewhere_state(error)
    except Permanent as error:
        await refuse(item_id, str(error))
        return outcome.refused_state(error)
    finally:
        live.job_ended.set()
        session.live.pop(item_id, None)


async def _steps_until_settled(item_id: str, session: LaunchSession, live: LiveLaunch) -> State[Any]:
    """Take the steps, from the top after each outage: what is done already is found, not repeated."""
    pause_seconds = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await _steps(item_id, session, live)
        except (Transient, OutcomeUnknown) as error:
            get_run_logger().warning("Waiting %.0f s before going on: %s", pause_seconds, error)
            await show(live, "WaitingForService", str(error))
            await _pause_or_hand_over(session, pause_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_seconds = min(MAX_PAUSE_SECONDS, pause_seconds * 2)


async def _pause_or_hand_over(session: LaunchSession, pause_seconds: float) -> None:
    if await sleep_until(session.handover, pause_seconds, session.clock):
        raise Abort("handed over while a remote system is away")


async def _steps(item_id: str, session: LaunchSession, live: LiveLaunch) -> State[Any]:
    log = get_run_logger()
    run_id = await claim(item_id)
    log.info("Claimed item %s as run %s", item_id, run_id)
    while True:
        if live.item.job_name:
            await find_running_job(item_id)
        else:
            await render_job(item_id)
            await submit(item_id)
        if live.job is None:
            if not live.is_stopped_by_someone:
                raise Abort("handed over before there was a job")
            break
        log.info("CustomJob %s is %s", live.job.name, live.job.launch_state)
        await _follow(item_id, session, live)
        if not attempts.turn_to_next(session, live):
            break
        await waiting.tell_of_relaunch(session, live)
    live.job_ended.set()
    await report(item_id)
    return outcome.final_state(session, live)


async def _follow(item_id: str, session: LaunchSession, live: LiveLaunch) -> None:
    """Follow the current attempt's job to its end."""
    assert live.job is not None
    showing_links = asyncio.create_task(outcome.show_links(session, live))
    await wait(item_id)
    await showing_links
    if not live.job.is_terminal:
        # The flow run stays as it is at Prefect; the agent that stops leaves it for the next one.
        raise Abort(f"handed over while {live.job.name} is {live.job.launch_state}")
    get_run_logger().info("CustomJob %s ended: %s", live.job.name, live.job.launch_state)


def _live(item_id: str) -> tuple[LaunchSession, LiveLaunch]:
    session = current_session()
    return session, session.live[item_id]


async def cancel_job(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect calls by name
    """Cancel the jobs of a flow run that was cancelled in Prefect while a worker of its own ran it.

    A flow run inside of an agent is served by the agent; here the process that waited is gone.
    """
    item_id = item_of(flow_run.tags)
    if item_id is None:
        return
    async with enter_session(flow_run.parameters["queue"]) as session:
        item = QueueItem.model_validate(flow_run.parameters["item"])
        locations = preparation.locations(session, item)
        for job in await session.regions.list(f'labels.{ITEM_LABEL}="{launch_key(item_id)}"', locations):
            if not job.is_terminal:
                await (await session.regions.of(job.name)).jobs.cancel(job.name)


launch.on_cancellation(cancel_job)
