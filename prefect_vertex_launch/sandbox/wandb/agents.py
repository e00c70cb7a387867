"""Launch agents, as W&B's queue page shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.ids import make_id
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal
from prefect_vertex_launch.sandbox.wandb.table import Table


@dataclass
class LaunchAgent:
    """One registered agent; `name` is also the id of the run in which W&B's own agent keeps its log.

    `statuses` are those that it has had, in their order, each change once.
    """

    id: str
    name: str
    queue_ids: list[str]
    hostname: str
    created_at: str
    config: str | None = None
    version: str | None = None
    statuses: list[str] = field(default_factory=lambda: ["POLLING"])
    stop_polling: bool = False
    heartbeat_at: str | None = None

    @property
    def key(self) -> str:
        """The id."""
        return self.id

    @property
    def status(self) -> str:
        """The status it has now."""
        return self.statuses[-1]


class Agents:
    """Registers agents, takes their heartbeats and tells them to stop."""

    def __init__(self, records: Records, now: Callable[[], datetime]) -> None:
        self._records = records
        self._now = now
        self._agents = Table(records, "launch-agent", LaunchAgent)

    def all(self) -> list[LaunchAgent]:
        """Return every agent, oldest first."""
        return list(self._agents)

    def get(self, agent_id: str | None) -> LaunchAgent | None:
        """Return one agent, or None."""
        return self._agents.get(agent_id)

    def register(
        self, queue_ids: list[str], hostname: str, *, config: str | None, version: str | None
    ) -> LaunchAgent:
        """Register an agent for some queues."""
        number = self._records.next_number("launch-agent")
        agent = LaunchAgent(
            id=make_id("LaunchAgent", number),
            name=f"launch-agent-{number}",
            queue_ids=queue_ids,
            hostname=hostname,
            created_at=self._now().isoformat(),
            config=config,
            version=version,
        )
        self._agents.save(agent)
        return agent

    def beat(self, agent: LaunchAgent) -> None:
        """Note that the agent was heard of just now."""
        agent.heartbeat_at = self._now().isoformat()
        self._agents.save(agent)

    def update(self, agent_id: str, status: str | None) -> LaunchAgent:
        """Take an agent's own word for its status (POLLING, RUNNING, KILLED).

        Raises:
            WandbRefusal: 404 for an unknown agent.
        """
        agent = self._known(agent_id)
        if status not in {None, agent.status}:
            agent.statuses.append(str(status))
        self.beat(agent)
        return agent

    def stop_polling(self, agent_id: str) -> None:
        """Ask an agent to stop, as the button on W&B's queue page does.

        Raises:
            WandbRefusal: 404 for an unknown agent.
        """
        agent = self._known(agent_id)
        agent.stop_polling = True
        self._agents.save(agent)

    def _known(self, agent_id: str) -> LaunchAgent:
        agent = self.get(agent_id)
        if agent is None:
            raise WandbRefusal(404, f"launch agent {agent_id} not found")
        return agent
