"""Who wants a job to end: the run's stop button at W&B, or a cancelled flow run in Prefect."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType

from flows.session import LaunchSession, LiveLaunch
from flows.tags import queue_tag
from vertex_launch.errors import LaunchError
from vertex_launch.lifecycle import StopRequest

logger = logging.getLogger(__name__)

# Every pass is one request to Prefect and one to W&B for each 50 live runs.
STOP_POLL_SECONDS = 5.0


async def watch_stops(session: LaunchSession) -> None:
    """Tell the live launches of a session who asked for their end, for ever.

    A failure to ask is logged and asked again on the next pass.
    """
    while True:
        await session.clock.sleep(STOP_POLL_SECONDS)
        live = [launch for launch in session.live.values() if launch.stop is None]
        if not live:
            continue
        try:
            await _ask_wandb(session, live)
        except LaunchError as error:
            logger.warning("W&B could not be asked for stopped runs: %s", error)
        try:
            await _ask_prefect(session, live)
        except httpx.HTTPError as error:
            logger.warning("Prefect could not be asked for cancelled flow runs: %s", error)


async def _ask_wandb(session: LaunchSession, live: Iterable[LiveLaunch]) -> None:
    by_run = {launch.run: launch for launch in live if launch.run is not None and launch.job is not None}
    if not by_run:
        return
    for run in await session.wandb.stopped_runs(list(by_run)):
        by_run[run].request_stop(
            StopRequest(
                who="wandb", since=session.clock.now(), grace_seconds=session.block.stop_grace_seconds
            )
        )


async def _ask_prefect(session: LaunchSession, live: Iterable[LiveLaunch]) -> None:
    by_flow_run = {launch.flow_run_id: launch for launch in live}
    tag = queue_tag(session.block.entity, session.block.queue)
    async with get_client() as client:
        cancelling = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(
                {"tags": {"all_": [tag]}, "state": {"type": {"any_": [StateType.CANCELLING]}}}
            )
        )
    for flow_run in cancelling:
        if launch := by_flow_run.get(flow_run.id):
            launch.request_stop(StopRequest(who="prefect", since=session.clock.now(), grace_seconds=0.0))
