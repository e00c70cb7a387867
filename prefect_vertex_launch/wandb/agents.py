"""Launch agents at W&B: registered for queues, heard of, told to end."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from typing import Any

from prefect_vertex_launch.core.errors import NotFound, Problem, Refused
from prefect_vertex_launch.wandb.documents import CREATE_AGENT, GET_AGENT, UPDATE_AGENT
from prefect_vertex_launch.wandb.graphql import WandbGraphql, at, text_at


class AgentStatus(StrEnum):
    """What a launch agent says of itself."""

    POLLING = "POLLING"
    RUNNING = "RUNNING"
    KILLED = "KILLED"


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """A registered launch agent; `stop_polling` says that somebody wants it to end.

    `name` is also the id of its own run at W&B, which its error files are kept in.
    """

    agent_id: str
    name: str
    status: str | None
    stop_polling: bool


async def register(
    graphql: WandbGraphql,
    *,
    entity: str,
    project: str,
    queue_ids: Sequence[str],
    agent_config: Mapping[str, Any],
) -> AgentRecord:
    """Register an agent for some queues of one entity, so that W&B shows it with them, and return it."""
    variables = {
        "entity": entity,
        "project": project,
        "queues": list(queue_ids),
        "hostname": socket.gethostname(),
        "agentConfig": json.dumps(dict(agent_config)),
        "version": f"prefect-vertex-launch@{version('prefect-vertex-launch')}",
    }
    created = at(await graphql.execute(CREATE_AGENT, variables), "createLaunchAgent")
    if created is None or not created.get("launchAgentId"):
        raise Refused(Problem(f"queues of {entity}", "W&B did not register the launch agent"))
    return await read_agent(graphql, str(created["launchAgentId"]))


async def read_agent(graphql: WandbGraphql, agent_id: str) -> AgentRecord:
    """Return a registered agent. Raises NotFound when W&B does not know it."""
    found = at(await graphql.execute(GET_AGENT, {"agentId": agent_id}), "launchAgent")
    if found is None:
        raise NotFound(Problem(f"launch agent {agent_id}", "W&B does not know it"))
    return AgentRecord(
        agent_id=agent_id,
        name=str(found.get("name") or ""),
        status=text_at(found, "agentStatus"),
        stop_polling=bool(found.get("stopPolling")),
    )


async def heartbeat(graphql: WandbGraphql, agent_id: str, status: AgentStatus) -> None:
    """Tell W&B what an agent is doing."""
    variables = {"agentId": agent_id, "agentStatus": status.value}
    await graphql.succeed(UPDATE_AGENT, variables, where=f"launch agent {agent_id}")
