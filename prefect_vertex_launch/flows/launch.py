"""One run queue item, from claim to report, as a Prefect flow.

    claim    the item is acknowledged at W&B under a run id that is fixed here
    render   run spec + queue configuration → CustomJob; what cannot be launched fails the item
    submit   the job is looked for by its label and created only if it is not there
    wait     the queue's watcher tells when it has ended; no job is polled by itself
    report   how it ended, told to W&B, as artifacts and as the flow run's state

Render, submit and wait are taken again for each further attempt. Each step is a task and can be repeated: a
run that a crash interrupted is started again from the top by the next agent, finds its claim and its job, and
goes on. The end of this process never ends the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import flow_run as runtime
from prefect.states import Completed
from prefect.tasks import Task

from prefect_vertex_launch.agent import solo
from prefect_vertex_launch.coordination import launch_record
from prefect_vertex_launch.coordination.launch_record import item_of, parents_labels, parents_of
from prefect_vertex_launch.coordination.prefect_client import prefect_client
from prefect_vertex_launch.core.clean_log import keep_from_log
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    Conflict,
    OutcomeUnknown,
    Permanent,
    Transient,
    Unforeseen,
)
from prefect_vertex_launch.core.unforeseen import unforeseen
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig
from prefect_vertex_launch.launch import attempts, find_jobs
from prefect_vertex_launch.launch import claim as claiming
from prefect_vertex_launch.launch import render as rendering
from prefect_vertex_launch.launch import report as reporting
from prefect_vertex_launch.launch import submit as submission
from prefect_vertex_launch.launch import wait as waiting
from prefect_vertex_launch.launch.cancel import cancel_after_death
from prefect_vertex_launch.launch.final_state import elsewhere_state, final_state
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.notify import tell_of_relaunch
from prefect_vertex_launch.launch.outage import OUTAGES, Outages
from prefect_vertex_launch.launch.queue_context import QueueContext, enter_queue, own_flow_run_id
from prefect_vertex_launch.launch.run_log import run_log
from prefect_vertex_launch.launch.safety_net import with_net

P = ParamSpec("P")
T = TypeVar("T")

RETRY_DELAYS_SECONDS = [2.0, 5.0, 10.0, 20.0]
MAX_UNFORESEEN_REPORTS = 3
_TAKEN_OVER = "another agent has taken it over, or may have"


async def is_worth_another_try(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed step is worth another try."""
    try:
        await state.aresult()
    except (Transient, OutcomeUnknown):
        return True
    except Exception:  # noqa: BLE001 - whatever else it is, another try would not cure it
        return False
    return False


def step(
    name: str,
) -> Callable[
    [Callable[Concatenate[Launch, P], Coroutine[Any, Any, T]]],
    Task[Concatenate[Launch, P], Coroutine[Any, Any, T]],
]:
    """Make a task of a step: tried again if that may help, and with a net under it."""
    as_task = task(
        name=name,
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_jitter_factor=0.3,
        retry_condition_fn=is_worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return lambda function: as_task(with_net(function))


@step("claim")
async def claim(launch: Launch) -> str:
    """Acknowledge the item at W&B; return the id of the run it becomes, or none if it is another's now."""
    return await claiming.claim(launch)


@step("render")
async def render(launch: Launch) -> dict[str, Any]:
    """Make the CustomJob from run spec and queue configuration; return it without its secrets."""
    return await rendering.render(launch)


@step("submit")
async def submit(launch: Launch, may_create: bool = True) -> str:
    """Find the item's job, or create it if it may be created; return its resource name, or none."""
    return await submission.submit(launch, may_create=may_create)


@step("wait")
async def wait(launch: Launch) -> str:
    """Wait until the job has ended, or this process hands it over; return the state's name."""
    return await waiting.wait(launch)


@step("report")
async def report(launch: Launch) -> str:
    """Tell W&B how the launch ended, or why it is refused; return one line, or none if it is not ours."""
    return await reporting.report(launch)


# A launch starts its own further attempts; PREFECT_FLOWS_DEFAULT_RETRIES would launch a failed run once more.
@flow(name="launch", retries=0, validate_parameters=True, persist_result=False, log_prints=False)
async def launch(queue: str, item: QueueItem | None = None) -> State[Any]:
    """Launch one run of a W&B queue on Vertex AI and follow it to its end.

    Args:
        queue: Name of the VertexLaunchQueue block.
        item: The run queue item; left empty, the next one is taken from the queue.
    """
    async with enter_queue(queue) as context:
        if item is None:
            async with solo.next_item(context) as taken:
                if taken is None:
                    return Completed(name="Idle", message=f"Nothing is queued on {context.block.queue}.")
                return await see_through(taken)
        return await see_through(context.live.get(item.item_id) or await _resumed(context, item))


async def see_through(launch: Launch) -> State[Any]:
    """Take the steps of a launch, from the top after each outage: what is done already is found.

    Returns the state in which its flow run ends. Raises Abort when it is handed over. The process that takes
    the steps may end at any time: another one takes the same steps.
    """
    live, item_id = launch.context.live, launch.item.item_id
    live[item_id] = launch
    keep_from_log(launch.secrets)
    outages = Outages(launch)
    try:
        while True:
            try:
                return await _take_steps(launch)
            except OUTAGES as error:
                await outages.sit_out(error)
            except Conflict as error:
                # The item may have been another agent's for long, and its launch too: that state stays.
                if not await launch.until_sure():
                    raise Abort(_TAKEN_OVER) from error
                launch.job_ended.set()
                return elsewhere_state(error)
            except Permanent as error:
                if launch.refusal is not None:
                    raise
                launch.refusal = error
            except Exception as error:
                if termination := _termination_behind(error):
                    raise termination from error
                # No step raises such an error, so it is Prefect's engine that could not go on.
                mask = launch.secrets.mask
                told = unforeseen(error, where=f"item {item_id}", log=run_log(), mask=mask)
                await outages.sit_out(Transient(str(told)))
    finally:
        live.pop(item_id, None)


def _termination_behind(error: Exception) -> BaseException | None:
    """Return the end of this process, if it is what Prefect's task engine stumbled over.

    It does if the end comes before the task has its run; taken for an error of the launch it would end that.
    """
    behind = error.__context__
    return behind if isinstance(behind, TerminationSignal | asyncio.CancelledError) else None


async def _take_steps(launch: Launch) -> State[Any]:
    """Take the steps in their order; a launch that is refused already only has to be reported."""
    if launch.refusal is None:
        await _follow_jobs(launch)
    if launch.job is None or launch.job.is_terminal:
        # Nothing runs: its slot is free, even while W&B cannot be told.
        launch.job_ended.set()
    if not await launch.until_sure() or not await _reported(launch):
        is_left = launch.leave.is_set() and not launch.is_taken_over
        raise Abort("handed over before W&B was told how it ended" if is_left else _TAKEN_OVER)
    return final_state(launch)


async def _reported(launch: Launch) -> str:
    """Report how the launch ended; after three errors that nobody foresaw it ends all the same."""
    try:
        return await report(launch)
    except Unforeseen as error:
        launch.unforeseen_reports += 1
        if launch.unforeseen_reports < MAX_UNFORESEEN_REPORTS:
            raise Transient(str(error)) from None
        run_log().error("It is not known whether W&B was told how the launch ended: %s", error)
        return "not reported"


async def _follow_jobs(launch: Launch) -> None:
    """Claim the item and follow its jobs to their end, one for each attempt.

    Whatever has become of its item and configuration since: no job that runs already is left to itself.
    """
    is_claimed = False
    try:
        await claim(launch)
        if launch.run is None:
            raise Abort(_TAKEN_OVER)
        is_claimed = True
        run_log().info("Claimed item %s as run %s", launch.item.item_id, launch.run.run_id)
        await _follow_attempts(launch)
    except AuthenticationFailed:
        raise
    except Permanent as error:
        if launch.job is None and (launch.may_have_job or launch.ended):
            await submit(launch, may_create=False)
        if launch.job is None:
            if launch.leave.is_set():
                raise Abort("handed over before it was clear whether there is a job") from error
            raise
        run_log().warning("%s is seen through all the same: %s", launch.job.name, error)
        await _follow_job(launch)
        if is_claimed and attempts.begin_next(launch):
            raise  # there can be no further attempt


async def _follow_attempts(launch: Launch) -> None:
    """Render, submit and wait, again for each further attempt, until none follows or somebody ends it."""
    while True:
        await render(launch)
        await submit(launch)
        if launch.job is None:
            if launch.leave.is_set() or launch.stop is None:
                raise Abort("handed over before there was a job")
            return
        await _follow_job(launch)
        if not attempts.begin_next(launch):
            return
        await tell_of_relaunch(launch)


async def _follow_job(launch: Launch) -> None:
    """Follow the current attempt's job to its end."""
    assert launch.job is not None
    run_log().info("CustomJob %s is %s", launch.job.name, launch.job.launch_state)
    try:
        await wait(launch)
    except Unforeseen as error:
        # It runs on, whatever has happened here: the launch looks for it anew.
        run_log().error("%s may still run: %s", launch.job.name, error)
        launch.job, launch.may_have_job = None, True
        raise Transient(str(error)) from None
    if not launch.job.is_terminal:
        # The flow run stays as it is at Prefect; the agent that stops leaves it for the next one.
        raise Abort(f"handed over while {launch.job.name} is {launch.job.launch_state}")
    run_log().info("CustomJob %s ended: %s", launch.job.name, launch.job.launch_state)


async def _resumed(context: QueueContext, item: QueueItem) -> Launch:
    """Return the launch of an item whose flow run a worker started, perhaps not for the first time."""
    config = await rendering.configuration(context, item)
    labels = await _labels(context, config)
    resumed = Launch(
        item,
        own_flow_run_id(),
        context,
        config=config,
        may_have_job=runtime.get_run_count() > 1,
        may_have_duplicate=launch_record.MAY_HAVE_DUPLICATE in labels,
        parents=parents_of(labels),
    )
    resumed.slot.admits.set()
    return resumed


async def _labels(context: QueueContext, config: QueueConfig | None) -> Mapping[str, object]:
    """Return this flow run's labels; record in them where jobs of its item may be from now on."""
    async with prefect_client() as client:
        while True:
            try:
                labels = (await client.read_flow_run(own_flow_run_id())).labels
                recorded = parents_of(labels)
                if not (new := rendering.job_parents(context, config)) <= recorded:
                    await client.update_flow_run_labels(own_flow_run_id(), {**parents_labels(recorded | new)})
            except Exception as error:  # noqa: BLE001 - see the next line
                # Failing would be the launch's end, and a job of it may be under way.
                run_log().warning("Prefect could not be asked where the job may be: %s", error)
                await context.clock.sleep(RETRY_DELAYS_SECONDS[-1])
            else:
                return labels


async def cancel_job(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect calls by name
    """Cancel the jobs of a flow run that was cancelled in Prefect while a worker of its own ran it.

    A flow run inside of an agent is served by the agent; here the process that waited is gone.
    """
    if item_of(flow_run.tags) is None:
        return
    async with enter_queue(flow_run.parameters["queue"]) as context:
        item = QueueItem.model_validate(flow_run.parameters["item"])
        await cancel_after_death(context, item, parents_of(flow_run.labels), find_jobs.LOOK_AGAIN_SECONDS)


launch.on_cancellation(cancel_job)
