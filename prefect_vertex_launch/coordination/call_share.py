"""The share of an agent in the calls to Vertex AI that all agents may send together.

Google counts the calls of a project and region, whichever machine they come from; each process keeps
within a budget of its own (`vertex.call_budget`). So each agent says in a label of its own flow run which
projects it calls, counts those at work that call the same ones, and takes a share of that size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient

from prefect_vertex_launch.coordination.heartbeat import AgentObserver, read_agents
from prefect_vertex_launch.coordination.submission_rate import SubmissionRate
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.vertex.jobs import VertexJobs

logger = clean_log("prefect.vertex-launch.agent")

PROJECTS_LABEL = "vertex-launch.projects"
LOOK_SECONDS = 30.0


class Caller(Protocol):
    """A queue whose launches call Vertex AI: its open job services, and the rate of its submissions."""

    @property
    def services(self) -> Sequence[VertexJobs]:
        """The job services that are open."""
        ...

    @property
    def rate(self) -> SubmissionRate | None:
        """The rate of submissions to its project, if Prefect keeps one."""
        ...


class CallShare:
    """One agent's share, for all of its queues, of any projects and regions."""

    def __init__(
        self,
        client: PrefectClient,
        flow_run_id: UUID,
        *,
        queues: Sequence[Caller],
        clock: Clock,
    ) -> None:
        self._client = client
        self._flow_run_id = flow_run_id
        self._queues = queues
        self._clock = clock
        self._observer = AgentObserver(client, clock=clock)
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
        services = [jobs for queue in self._queues for jobs in queue.services]
        await self._say(" ".join(sorted({jobs.project for jobs in services})))
        others = [run for run in await read_agents(self._client) if run.id != self._flow_run_id]
        agents = Counter(
            project
            for run in self._observer.still_at_work(others)
            for project in str(run.labels.get(PROJECTS_LABEL, "")).split()
        )
        for jobs in services:
            jobs.share_calls(agents=1 + agents[jobs.project])
        for queue in self._queues:
            if queue.rate is not None:
                queue.rate.agents = 1 + agents[queue.rate.project]

    async def _say(self, projects: str) -> None:
        if projects != self._said:
            await self._client.update_flow_run_labels(self._flow_run_id, {PROJECTS_LABEL: projects})
            self._said = projects
