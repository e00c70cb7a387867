"""The share of an agent in the calls to Vertex AI that all agents may send together.

Google counts the calls of a project and region, whichever machine they come from; each process keeps
within a budget of its own (`vertex.call_budget`). So each agent says in a label of its own flow run which
projects it calls, counts those at work that call the same ones, and takes a share of that size.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient

from prefect_vertex_launch.coordination.heartbeat import Colleagues, read_agents
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.launch.queue_context import LaunchSession

logger = logging.getLogger("prefect.vertex-launch.agent")

PROJECTS_LABEL = "vertex-launch.projects"
LOOK_SECONDS = 30.0


class CallShare:
    """One agent's share, for the queues of all of its sessions, of any projects and regions."""

    def __init__(
        self,
        client: PrefectClient,
        flow_run_id: UUID,
        *,
        flow_name: str,
        sessions: Sequence[LaunchSession],
        clock: Clock,
    ) -> None:
        self._client = client
        self._flow_run_id = flow_run_id
        self._flow_name = flow_name
        self._sessions = sessions
        self._clock = clock
        self._colleagues = Colleagues(client, clock=clock)
        self._said: str | None = None

    async def keep_sharing(self) -> None:
        """Look who else is at work, and share with them, for ever; without Prefect all stays as it was."""
        while True:
            try:
                await self._share()
            except httpx.HTTPError as error:
                logger.warning("Nobody could be asked which agents share the calls to Vertex AI: %s", error)
            await self._clock.sleep(LOOK_SECONDS)

    async def _share(self) -> None:
        services = [jobs for session in self._sessions for jobs in session.regions.services]
        await self._say(" ".join(sorted({jobs.project for jobs in services})))
        others = [
            run for run in await read_agents(self._client, self._flow_name) if run.id != self._flow_run_id
        ]
        agents = Counter(
            project
            for run in self._colleagues.still_at_work(others)
            for project in str(run.labels.get(PROJECTS_LABEL, "")).split()
        )
        for jobs in services:
            jobs.share_calls(agents=1 + agents[jobs.project])
        for session in self._sessions:
            if session.pace is not None:
                session.pace.agents = 1 + agents[session.block.project]

    async def _say(self, projects: str) -> None:
        if projects != self._said:
            await self._client.update_flow_run_labels(self._flow_run_id, {PROJECTS_LABEL: projects})
            self._said = projects
