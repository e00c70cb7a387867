"""One run queue item, from claim to report, as a Prefect flow.

    claim    the item is acknowledged at W&B under a run id that is fixed here
    render   run spec + queue configuration → CustomJob; what cannot be launched fails the item
    submit   the job is looked for by its label and created only if it is not there
    wait     the session's watcher resolves it; nothing is polled per job
    report   how it ended, told to W&B, as artifacts and as the flow run's state

Render, submit and wait are taken again for each further attempt. Each step is a task and can be
repeated: a run that a crash interrupted is started again from the top by the next agent, finds its
claim and its job, and goes on. The end of this process never ends the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run as runtime
from prefect.states import Completed
from prefect.tasks import Task

from prefect_vertex_launch.agent import solo
from prefect_vertex_launch.coordination import marks
from prefect_vertex_launch.coordination.tags import item_of
from prefect_vertex_launch.coordination.whereabouts import whereabouts_labels, whereabouts_of
from prefect_vertex_launch.core.errors import LaunchError, OutcomeUnknown, Transient
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig
from prefect_vertex_launch.launch import find_jobs, preparation, steps
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.lifecycle import Course, Step
from prefect_vertex_launch.launch.queue_context import (
    LaunchSession,
    current_session,
    enter_session,
    own_flow_run_id,
)
from prefect_vertex_launch.launch.run_log import run_log

RETRY_DELAYS_SECONDS = [2.0, 5.0, 10.0, 20.0]
# A cancelled launch that a worker ran has nobody but its hook: about half an hour of tries.
CANCEL_PAUSES_SECONDS = [*RETRY_DELAYS_SECONDS, *(60.0,) * 30]


async def may_pass(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is worth another try."""
    try:
        await state.aresult()
    except (Transient, OutcomeUnknown):
        return True
    except Exception:  # noqa: BLE001 - whatever else it is, another try would not cure it
        return False
    return False


def _task_of(step: Step, name: str) -> Callable[[str], Awaitable[Any]]:
    """Return a step as a task; its parameter is the item, because sessions are not for Prefect to keep."""

    async def run(item_id: str) -> Any:
        session = current_session()
        return await step(session, session.live[item_id])

    run.__doc__ = step.__doc__
    return task(
        name=name,
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_jitter_factor=0.3,
        retry_condition_fn=may_pass,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(run)


_TASKS: dict[Step, Callable[[str], Awaitable[Any]]] = {
    step: _task_of(step, name)
    for step, name in (
        (steps.claim, "claim"),
        (steps.render_job, "render"),
        (steps.submit, "submit"),
        (steps.find_running_job, "find"),
        (steps.find_left_job, "find-left"),
        (steps.wait, "wait"),
        (steps.report, "report"),
        (steps.refuse, "refuse"),
    )
}


# A launch starts its own further attempts; PREFECT_FLOWS_DEFAULT_RETRIES would launch a failed run once more.
@flow(name="launch", retries=0, validate_parameters=True, persist_result=False, log_prints=False)
async def launch(queue: str, item: QueueItem | None = None) -> State[Any]:
    """Launch one run of a W&B queue on Vertex AI and follow it to its end.

    Args:
        queue: Name of the VertexLaunchQueue block.
        item: The run queue item; left empty, the next one is taken from the queue.
    """
    async with enter_session(queue) as session:
        if item is None:
            async with solo.next_item(session) as taken:
                if taken is None:
                    return Completed(name="Idle", message=f"Nothing is queued on {session.block.queue}.")
                return await _run_course(session, taken)
        live = session.live.get(item.item_id)
        if live is None:
            config = preparation.configuration(session, item)
            labels = await _labels(session, config)
            live = LiveLaunch(
                item=item,
                flow_run_id=own_flow_run_id(),
                config=config,
                may_have_job=runtime.get_run_count() > 1,
                may_have_twin=marks.MAY_HAVE_TWIN in labels,
                whereabouts=whereabouts_of(labels),
            )
            live.slot.admits.set()
        return await _run_course(session, live)


async def _labels(session: LaunchSession, config: QueueConfig | None) -> Mapping[str, object]:
    """Return this flow run's labels; note in them where jobs of its item may be from now on."""
    async with get_client() as client:
        while True:
            try:
                labels = (await client.read_flow_run(own_flow_run_id())).labels
                noted = whereabouts_of(labels)
                if not (new := preparation.whereabouts(session, config)) <= noted:
                    await client.update_flow_run_labels(
                        own_flow_run_id(), {**whereabouts_labels(noted | new)}
                    )
            except httpx.HTTPError as error:
                # Failing would be the launch's end, and a job of it may be under way.
                run_log().warning("Prefect could not be asked where the job may be: %s", error)
                await session.clock.sleep(RETRY_DELAYS_SECONDS[-1])
            else:
                return labels


async def _run_course(session: LaunchSession, live: LiveLaunch) -> State[Any]:
    try:
        return await Course(session, live, lambda step: _TASKS[step](live.item.item_id)).run()
    except ValueError as error:
        # Prefect's task engine stumbles over a termination that comes before the task has its run; taken
        # for an error of the launch it would end it for good.
        if isinstance(error.__context__, TerminationSignal | asyncio.CancelledError):
            raise error.__context__ from error
        raise


async def cancel_job(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect calls by name
    """Cancel the jobs of a flow run that was cancelled in Prefect while a worker of its own ran it.

    A flow run inside of an agent is served by the agent; here the process that waited is gone.
    """
    if item_of(flow_run.tags) is None:
        return
    async with enter_session(flow_run.parameters["queue"]) as session:
        item = QueueItem.model_validate(flow_run.parameters["item"])
        # Once more where nothing is found: the process may have died while it created a job.
        for pause_seconds in (*find_jobs.LOOK_AGAIN_SECONDS, None):
            if await _cancelled(session, item, whereabouts_of(flow_run.labels)) or pause_seconds is None:
                return
            await session.clock.sleep(pause_seconds)


async def _cancelled(session: LaunchSession, item: QueueItem, noted: frozenset[str]) -> bool:
    """Cancel an item's jobs, as soon as Vertex AI can be asked; return whether there is any.

    Prefect calls its hook once, and nobody else comes to it.
    """
    for pause_seconds in (*CANCEL_PAUSES_SECONDS, None):
        try:
            return await find_jobs.cancel_all(session, item, noted)
        except LaunchError as error:
            if pause_seconds is None:
                raise
            run_log().warning("The job could not be cancelled, again in %.0f s: %s", pause_seconds, error)
            await session.clock.sleep(pause_seconds)
    raise AssertionError("the last try returns or raises")


launch.on_cancellation(cancel_job)
