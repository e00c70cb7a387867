"""The step `claim`: the item is acknowledged at W&B under a run id that is fixed here."""

from __future__ import annotations

from prefect_vertex_launch.core.errors import InvalidRunSpec, waiting_if_denied
from prefect_vertex_launch.launch.item import run_of
from prefect_vertex_launch.launch.launch import Launch


async def claim(launch: Launch) -> str:
    """Read the item's run spec and acknowledge the item at W&B; return the id of the run it becomes.

    Returns none if the launch is another agent's by now. Raises InvalidRunSpec before the item is claimed,
    Conflict when another agent has the item, and Transient as long as W&B denies us the queue, which is no
    fault of the item.
    """
    item = launch.item
    if problems := item.as_problems():
        raise InvalidRunSpec(problems)
    run = run_of(item.require_spec(), item.item_id)
    # The item of a job that runs already was claimed by the agent that made it. When that agent was stopped
    # it may have failed the item, and nobody can claim it any more.
    if item.job_name is None:
        if not await launch.until_sure():
            return ""
        # Dying here leaves the item leased: it returns to the queue by itself and keeps this flow run.
        with waiting_if_denied():
            await launch.context.wandb.acknowledge(item.item_id, run.run_id)
    launch.run = run
    return run.run_id
