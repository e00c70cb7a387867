"""An agent at W&B: registered for its queues, with a status, a heartbeat and a run of its own.

W&B's queue page shows it as a launch agent, and its run keeps the files that say why an item failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect_vertex_launch.agent.queue_worker import QueueWorker
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.errors import LaunchError
from prefect_vertex_launch.wandb.queue import AgentRecord, AgentStatus, WandbQueue

logger = clean_log("prefect.vertex-launch.agent")


@dataclass(eq=False)
class WandbRegistration:
    """The agent as one W&B server knows it, for the queues of one entity."""

    wandb: WandbQueue
    record: AgentRecord
    workers: list[QueueWorker] = field(default_factory=list[QueueWorker])

    async def say_what_it_does(self, *, is_ending: bool) -> None:
        """Send the heartbeat: RUNNING while a launch is under way, else POLLING, unless it takes no more."""
        if any(worker.is_busy for worker in self.workers):
            await self._say(AgentStatus.RUNNING)
        elif not is_ending:
            await self._say(AgentStatus.POLLING)

    async def is_to_stop(self) -> bool:
        """Whether somebody stopped the agent at W&B. Raises LaunchError when W&B cannot be asked."""
        return (await self.wandb.read_agent(self.record.agent_id)).stop_polling

    async def end(self) -> None:
        """Say that the agent is gone, and end its run."""
        await self._say(AgentStatus.KILLED)
        try:
            await self.wandb.close_agent_run(self.record.name)
        except LaunchError as error:
            logger.warning("The run of agent %s could not be ended at W&B: %s", self.record.name, error)

    async def _say(self, status: AgentStatus) -> None:
        try:
            await self.wandb.heartbeat(self.record.agent_id, status)
        except LaunchError as error:
            logger.warning("W&B did not take the agent's status %s: %s", status.value, error)


async def register(workers: Sequence[QueueWorker], queue_ids: Sequence[str]) -> WandbRegistration:
    """Register for queues of one entity at one W&B server. Raises LaunchError when W&B refuses."""
    first = workers[0].context
    record = await first.wandb.register(_agent_config(workers), queue_ids)
    try:
        await first.wandb.open_agent_run(record.name)
    except LaunchError as error:
        logger.warning("The agent has no run at W&B, so failed items get no file: %s", error)
    else:
        for worker in workers:
            worker.context.agent_name = record.name
    for worker in workers:
        worker.agent_id = record.agent_id
    names = ", ".join(worker.context.block.queue for worker in workers)
    logger.info("Agent %s serves %s of %s", record.name, names, first.block.entity)
    return WandbRegistration(first.wandb, record, list(workers))


def _agent_config(workers: Sequence[QueueWorker]) -> Mapping[str, Any]:
    """Return what W&B shows as the agent's configuration, in the words of its own agent."""
    blocks = [worker.context.block for worker in workers]
    limits = [block.max_jobs for block in blocks]
    return {
        "entity": blocks[0].entity,
        "queues": [block.queue for block in blocks],
        "max_jobs": -1 if -1 in limits else sum(limits),
        "max_schedulers": max(block.max_schedulers for block in blocks),
        "environment": {"type": "gcp", "region": ", ".join(sorted({block.location for block in blocks}))},
    }
