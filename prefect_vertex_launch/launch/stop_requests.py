"""Who wants a launch to end: a person at W&B, or a person in the Prefect UI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import httpx

from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.errors import AuthenticationFailed, LaunchError, Permanent, Transient
from prefect_vertex_launch.core.states import SUCCESS, Requester, StopRequest
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.queue_context import QueueContext

logger = clean_log(__name__)

Ask = Callable[[QueueContext, Sequence[Launch]], Awaitable[None]]

# Every pass is one request to Prefect and one to W&B for each 50 live runs.
STOP_POLL_SECONDS = 5.0


async def watch_stops(context: QueueContext) -> None:
    """Tell the live launches of a queue who asked for their end, for ever.

    Prefect and W&B are asked side by side, so that neither waits for the other. A failure to ask is
    logged and asked again on the next pass.
    """
    async with asyncio.TaskGroup() as group:
        for ask in (_ask_wandb, _ask_prefect):
            group.create_task(_keep_asking(context, ask))


async def _keep_asking(context: QueueContext, ask: Ask) -> None:
    while True:
        await context.clock.sleep(STOP_POLL_SECONDS)
        live = [launch for launch in context.live.values() if not launch.is_stopped_by_someone]
        try:
            await ask(context, live)
        except LaunchError as error:
            logger.warning("Nobody knows for now who asked for the end of launches: %s", error)


async def ask_who(launch: Launch) -> None:
    """Find out now whether a person asked for the end of a launch whose job has ended.

    Whoever did may have asked a process that is gone, or only just now. Raises what a launch waits for
    as long as nobody can be asked: W&B is told one end, and not another one later.
    """
    if launch.is_stopped_by_someone:
        return
    try:
        if launch.job is None or launch.job.launch_state not in SUCCESS:
            await _ask_wandb(launch.context, [launch])
    except AuthenticationFailed:
        raise
    except Permanent as error:
        logger.warning("W&B does not say who asked for the end of a launch: %s", error)
    await _ask_prefect(launch.context, [launch])


async def _ask_wandb(context: QueueContext, live: Sequence[Launch]) -> None:
    by_run = {launch.run: launch for launch in live if launch.run is not None}
    if not by_run:
        return
    for run, record in (await context.wandb.read_runs(list(by_run))).items():
        if record.is_stopped:
            by_run[run].request_stop(
                StopRequest(Requester.WANDB, context.clock.now(), context.block.stop_grace_seconds)
            )


async def _ask_prefect(context: QueueContext, live: Sequence[Launch]) -> None:
    by_flow_run = {launch.flow_run_id: launch for launch in live}
    if not by_flow_run:
        return
    try:
        cancelling = await context.page.cancelling(context.block.identity.tag)
    except httpx.HTTPError as error:
        raise Transient(f"Prefect could not be asked for cancelled flow runs: {error}") from error
    for flow_run_id in cancelling:
        if launch := by_flow_run.get(flow_run_id):
            launch.request_end(Requester.PREFECT)
