"""What is said of an item at W&B, and of its launch in Prefect, while it is under way.

W&B shows the message of a failed item, and the file that goes with it, beside the run queue.
"""

from __future__ import annotations

import httpx
from prefect.states import Running

from prefect_vertex_launch.core.errors import AuthenticationFailed, LaunchError, Permanent
from prefect_vertex_launch.launch.denial import denial_passes
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.queue_context import LaunchSession
from prefect_vertex_launch.launch.run_log import run_log
from prefect_vertex_launch.wandb.queue import error_file

# The stages of a failure that W&B's own agent knows: before there is a job, and after.
AGENT_STAGE = "agent"
RUN_STAGE = "run"
RUNNING = "Running"


async def fail(session: LaunchSession, live: LiveLaunch, message: str, *, stage: str) -> bool:
    """Fail the item with a message; the whole of it is in a file too, if there is an agent to keep it.

    Returns False if nothing was said, because the launch is another agent's by now or may be. An item
    that W&B will not fail, because somebody has removed it for example, is left as it is.
    """
    if not await session.until_sure(live):
        return False
    paths = await _saved(session, live, message)
    if not await session.until_sure(live):
        return False
    try:
        with denial_passes(AuthenticationFailed):
            await session.wandb.fail(live.item.item_id, message, stage, paths)
    except Permanent as error:
        run_log().warning("W&B did not fail the item: %s", error)
    return True


async def warn(session: LaunchSession, live: LiveLaunch, message: str) -> None:
    """Attach a warning to the item, once for each message; it is not worth ending anything for."""
    if message in live.told:
        return
    live.told.add(message)
    run_log().warning(message)
    try:
        await session.wandb.warn(live.item.item_id, message, RUN_STAGE)
    except LaunchError as error:
        run_log().warning("W&B did not take the warning: %s", error)


async def show(session: LaunchSession, live: LiveLaunch, name: str, message: str) -> None:
    """Give the flow run a state of this name, so that its page says what it waits for.

    A run that somebody is cancelling keeps that state: Prefect refuses to change it.
    """
    if name == RUNNING and "state" not in live.told:
        return
    try:
        await session.page.show_state(live.flow_run_id, Running(name=name, message=message))
    except httpx.HTTPError as error:
        run_log().warning("Prefect did not take the state %s: %s", name, error)
        return
    if name == RUNNING:
        live.told.discard("state")
    else:
        live.told.add("state")


async def _saved(session: LaunchSession, live: LiveLaunch, text: str) -> list[str]:
    if session.agent_name is None:
        return []
    path = error_file(live.item.item_id)
    try:
        await session.wandb.upload_agent_file(session.agent_name, path, text)
    except LaunchError as error:
        run_log().warning("The error file could not be left at W&B: %s", error)
        return []
    return [path]
