"""One run queue item, from claim to report, as a Prefect flow.

    claim    the item is acknowledged at W&B under a run id that is fixed here
    render   run spec + queue configuration → CustomJob; what cannot be launched fails the item
    submit   the job is looked for by its label and created only if it is not there
    wait     the session's watcher resolves it; nothing is polled per job
    report   how it ended, told to W&B, as artifacts and as the flow run's state

Each step can be repeated: a run that a crash interrupted is started again from the top by the next
agent, finds its claim and its job, and goes on. The end of this process never ends the job.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.exceptions import Abort
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import Task

from flows import outcome, take
from flows.queue_item import QueueItem, run_of
from flows.session import LaunchSession, LiveLaunch, current_session, enter_session, own_flow_run_id
from flows.tags import item_of
from vertex_launch.clock import sleep_until
from vertex_launch.errors import (
    Conflict,
    InvalidRunSpec,
    LaunchError,
    OutcomeUnknown,
    Permanent,
    Problem,
    Transient,
)
from vertex_launch.lifecycle import (
    Cancel,
    Desired,
    ItemState,
    JobRecord,
    Observed,
    Report,
    Submit,
    Wait,
    decide,
)
from vertex_launch.queue_config import parse_queue_config
from vertex_launch.render import ITEM_LABEL, LaunchContext, launch_key, render
from vertex_launch.run_spec import parse_run_spec

# A step is tried again for about half a minute; a remote system that is away for longer makes the whole
# launch wait and start over, for as long as it takes.
RETRY_DELAYS_SECONDS = [2.0, 5.0, 10.0, 20.0]
FIRST_PAUSE_SECONDS = 30.0
MAX_PAUSE_SECONDS = 300.0
# Vertex AI's LIST may lag behind a create whose answer was lost.
LOOK_AGAIN_SECONDS = (2.0, 8.0)


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
    live.spec = parse_run_spec(live.item.payload, item_id=item_id)
    run = run_of(live.spec, item_id)
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
    block, spec, run = session.block, live.spec, live.run
    assert spec is not None
    assert run is not None
    config = parse_queue_config(
        spec.resource_args, defaults=block.defaults(), where=f"resource_args.{spec.resource}"
    )
    image_uri, entry_point = await _image(session, live)
    endpoint = block.wandb_credentials.endpoint()
    live.rendering = rendering = render(
        spec,
        config,
        LaunchContext(
            item_id=item_id,
            queue_entity=block.entity,
            queue_name=block.queue,
            run_id=run.run_id,
            image_uri=image_uri,
            base_url=endpoint.base_url,
            api_key=live.api_key or endpoint.api_key,
            project=block.project,
            location=block.location,
            macros=block.macros(),
            job_entry_point=entry_point,
            api_key_of_author=live.api_key is not None,
        ),
    )
    for warning in (*config.warnings, *rendering.warnings):
        get_run_logger().warning(warning)
    return rendering.redacted()


@task(name="submit", **_step)
async def submit(item_id: str) -> str:
    """Create the CustomJob unless there is one for this item already; return its resource name.

    Raises Refused with Vertex AI's own words when it will not have the job.
    """
    session, live = _live(item_id)
    assert live.rendering is not None
    job = await _find_job(session, live)
    if job is None:
        try:
            # Dying here is why the label is looked for first: the job is found by the next try.
            job = await session.jobs.create(
                live.rendering.job, timeout_seconds=live.rendering.create_timeout_seconds
            )
        except OutcomeUnknown:
            job = await _look_again(session, live)
            if job is None:
                raise
    live.job = job
    # A thousand launches wait here at once: what is needed no more goes.
    live.rendering = live.spec = None
    return job.name


@task(name="wait", **_step)
async def wait(item_id: str) -> str:
    """Wait until the job has ended, or this process hands it over; return the state's name."""
    session, live = _live(item_id)
    assert live.job is not None
    watch = asyncio.create_task(session.watcher.wait(live.job.name, _on_change(live)))
    stopping = asyncio.create_task(_stop_when_asked(session, live))
    handover = asyncio.create_task(session.handover.wait())
    try:
        await asyncio.wait({watch, handover}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            live.job = watch.result()
            return live.job.launch_state.value
        return "handed over"
    finally:
        for waiter in (watch, stopping, handover):
            waiter.cancel()


@task(name="report", **_step)
async def report(item_id: str) -> str:
    """Tell W&B how the job ended and leave links and a diagnosis; return the diagnosis' summary."""
    session, live = _live(item_id)
    return await outcome.report(session, live)


@task(name="refuse", **_step)
async def refuse(item_id: str, message: str) -> None:
    """Fail the item at W&B with the reason why it cannot be launched."""
    session, _ = _live(item_id)
    await session.wandb.fail(item_id, message, stage="agent")


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
        return await _carry(session, LiveLaunch(item=item, flow_run_id=own_flow_run_id()))


async def _carry(session: LaunchSession, live: LiveLaunch) -> State[Any]:
    item_id = live.item.item_id
    session.live[item_id] = live
    try:
        return await _steps_until_settled(item_id, session, live)
    except Conflict as error:
        return Cancelled(name="Elsewhere", message=str(error))
    except Permanent as error:
        await refuse(item_id, str(error))
        return Failed(name="Refused", message=str(error))
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
            await _pause_or_hand_over(session, pause_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_seconds = min(MAX_PAUSE_SECONDS, pause_seconds * 2)


async def _pause_or_hand_over(session: LaunchSession, pause_seconds: float) -> None:
    if await sleep_until(session.handover, pause_seconds, session.clock):
        raise Abort("handed over while a remote system is away")


async def _steps(item_id: str, session: LaunchSession, live: LiveLaunch) -> State[Any]:
    log = get_run_logger()
    run_id = await claim(item_id)
    log.info("Claimed item %s as run %s", item_id, run_id)
    await render_job(item_id)
    await submit(item_id)
    assert live.job is not None
    log.info("CustomJob %s is %s", live.job.name, live.job.launch_state)
    showing_links = asyncio.create_task(outcome.show_links(session, live))
    await wait(item_id)
    if not live.job.is_terminal:
        await showing_links
        # The flow run stays as it is at Prefect; the agent that stops leaves it for the next one.
        raise Abort(f"handed over while {live.job.name} is {live.job.launch_state}")
    live.job_ended.set()
    log.info("CustomJob %s ended: %s", live.job.name, live.job.launch_state)
    await showing_links
    await report(item_id)
    return outcome.final_state(live)


async def _image(session: LaunchSession, live: LiveLaunch) -> tuple[str, tuple[str, ...]]:
    """Return the image the run is to use, and the entry point its W&B job brings along."""
    spec = live.spec
    assert spec is not None
    if spec.image_uri is not None:
        return spec.image_uri, ()
    assert spec.job is not None
    entity, project, name = spec.job.split("/", 2)
    source = await session.wandb.read_job(entity, project, name)
    if source.kind != "image" or source.image_uri is None:
        raise InvalidRunSpec(
            Problem(
                where=f"item {live.item.item_id}: job {spec.job}",
                what=f"its source is {source.kind}, not an image",
                why="Vertex AI runs containers, and no image is built here, so the code would be missing",
                fix="Create an image job (wandb job create image …) or launch with --docker-image.",
            )
        )
    return source.image_uri, source.entry_point


async def _find_job(session: LaunchSession, live: LiveLaunch) -> JobRecord | None:
    """Return this item's job if Vertex AI has one; of two live ones the younger is cancelled."""
    item_id, run = live.item.item_id, live.run
    assert run is not None
    while True:
        jobs = await session.jobs.list(f'labels.{ITEM_LABEL}="{launch_key(item_id)}"')
        decision = decide(
            Observed(item_state=ItemState.CLAIMED, item_run_id=run.run_id, jobs=jobs),
            Desired(run_id=run.run_id, stop=None),
            session.clock.now(),
        )
        match decision:
            case Wait(job=job) | Report(job=job):
                return job
            case Cancel(job=job, reason=reason):
                get_run_logger().error("Cancelling %s: %s", job.name, reason)
                await session.jobs.cancel(job.name)
                await session.clock.sleep(LOOK_AGAIN_SECONDS[0])
            case Submit():
                return None
            case _:
                raise LaunchError(f"item {item_id}: nothing can be done for {decision}")


async def _look_again(session: LaunchSession, live: LiveLaunch) -> JobRecord | None:
    """Look twice, spaced, for a job whose creation was not answered."""
    for pause_seconds in LOOK_AGAIN_SECONDS:
        await session.clock.sleep(pause_seconds)
        if job := await _find_job(session, live):
            return job
    return None


async def _stop_when_asked(session: LaunchSession, live: LiveLaunch) -> None:
    """Cancel the job once somebody wants its end and the grace for the run to end itself is over."""
    await live.stop_requested.wait()
    stop, job = live.stop, live.job
    assert stop is not None
    assert job is not None
    get_run_logger().info("Stop requested by %s; cancelling in %.0f s", stop.who, stop.grace_seconds)
    await session.clock.sleep(stop.grace_seconds)
    pause_seconds = 1.0
    while True:
        try:
            await session.jobs.cancel(job.name)
        except LaunchError as error:
            get_run_logger().warning("%s could not be cancelled yet: %s", job.name, error)
        session.watcher.wake()
        # Vertex AI's cancel is best effort: it is asked again until the job has ended.
        await session.clock.sleep(pause_seconds)
        pause_seconds = min(60.0, pause_seconds * 4)


def _on_change(live: LiveLaunch) -> Any:
    log = get_run_logger()

    async def changed(job: JobRecord) -> None:
        live.job = job
        log.info("CustomJob %s is %s", job.job_id, job.launch_state)

    return changed


def _live(item_id: str) -> tuple[LaunchSession, LiveLaunch]:
    session = current_session()
    return session, session.live[item_id]


async def cancel_job(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect calls by name
    """Cancel the job of a flow run that was cancelled in Prefect while a worker of its own ran it.

    A flow run inside of an agent is served by the agent; here the process that waited is gone.
    """
    item_id = item_of(flow_run.tags)
    if item_id is None:
        return
    async with enter_session(flow_run.parameters["queue"]) as session:
        for job in await session.jobs.list(f'labels.{ITEM_LABEL}="{launch_key(item_id)}"'):
            if not job.is_terminal:
                await session.jobs.cancel(job.name)


launch.on_cancellation(cancel_job)
