"""Which agents are at work, and what an agent may still believe of itself.

An agent writes a number, one higher each time, into a label of its own flow run. Another agent that has
looked all the while and has seen the same number for a minute and a half takes it for gone and adopts
its launches. Clocks of different machines are not compared.

An agent whose number has not reached Prefect for longer than half of that (it was frozen, or Prefect
was away) cannot know whether it was taken for gone. Until it does it writes nothing: no job is created
and nothing is reported. Once its number is there again it looks which of its launches are still its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from prefect_vertex_launch.coordination.prefect_api import AGENT_FLOW, read_flow_runs, read_flow_runs_by_id
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock, sleep_until

logger = clean_log("prefect.vertex-launch.agent")

HEARTBEAT_LABEL = "vertex-launch.heartbeat"
HEARTBEAT_SECONDS = 15.0
DOUBT_SECONDS = 45.0
GONE_SECONDS = 90.0
# Whoever has not looked for so long has not seen what happened in between.
LOOK_AWAY_SECONDS = 70.0
_DOUBT_POLL_SECONDS = 1.0
# Flow runs that nobody ended stand at Running for good: those that began last are the ones at work.
_MOST_AGENTS = 200
_UNENDED = (StateType.RUNNING, StateType.CANCELLING)


class Heartbeat:
    """One agent's own heartbeat at Prefect, and what the agent may still believe of itself."""

    def __init__(self, client: PrefectClient, flow_run_id: UUID, *, clock: Clock) -> None:
        self._client = client
        self._flow_run_id = flow_run_id
        self._clock = clock
        self._count = 0
        self._last = clock.monotonic()

    async def keep_beating(self, look_at_own: Callable[[], Awaitable[None]]) -> None:
        """Send the heartbeat, for ever.

        After a gap in which others may have taken this agent for gone, `look_at_own` lets go of what is
        not its own any more, before anything is written again.
        """
        while True:
            sent = self._clock.monotonic()
            try:
                self._count += 1
                await self._client.update_flow_run_labels(self._flow_run_id, {HEARTBEAT_LABEL: self._count})
                if not self.is_sure:
                    await look_at_own()
                self._last = sent
            except httpx.HTTPError as error:
                logger.warning("The agent's heartbeat did not reach Prefect: %s", error)
            await self._clock.sleep(HEARTBEAT_SECONDS)

    @property
    def is_sure(self) -> bool:
        """Whether nobody can have taken this agent for gone."""
        return self._clock.monotonic() - self._last <= DOUBT_SECONDS

    async def until_sure(self, leave: asyncio.Event) -> bool:
        """Wait until this agent is sure of itself, or `leave` is set; return whether it is sure."""
        while not self.is_sure and not leave.is_set():
            await sleep_until(leave, _DOUBT_POLL_SECONDS, self._clock)
        return self.is_sure


@dataclass(slots=True)
class _Sighting:
    """A heartbeat as it was seen: since when it has been the same, and when it was last looked at."""

    heartbeat: object
    since: float
    looked: float


class AgentObserver:
    """The other agents, as one agent sees them."""

    def __init__(self, client: PrefectClient, *, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._seen: dict[UUID, _Sighting] = {}

    async def at_work(self, agents: set[UUID]) -> set[UUID]:
        """Return those agents (by flow run) that may be at work.

        One whose flow run has ended is not, and one whose heartbeat has stood still for long enough.
        Raises httpx.HTTPError when Prefect cannot be asked.
        """
        return {run.id for run in self.still_at_work(await read_flow_runs_by_id(self._client, agents))}

    def still_at_work(self, runs: Iterable[FlowRun]) -> list[FlowRun]:
        """Return those of the agents' flow runs, as they have just been read, that may be at work."""
        return [run for run in runs if not _has_ended(run) and self._moves(run)]

    def _moves(self, run: FlowRun) -> bool:
        now, heartbeat = self._clock.monotonic(), run.labels.get(HEARTBEAT_LABEL)
        seen = self._seen.get(run.id)
        if seen is None or seen.heartbeat != heartbeat or now - seen.looked > LOOK_AWAY_SECONDS:
            self._seen[run.id] = _Sighting(heartbeat, now, now)
            return True
        seen.looked = now
        return now - seen.since < GONE_SECONDS


async def read_agents(client: PrefectClient) -> list[FlowRun]:
    """Return the flow runs of agents that have not ended, those that began last first."""
    return await read_flow_runs(
        client, flow=AGENT_FLOW, states=_UNENDED, sort=FlowRunSort.START_TIME_DESC, most=_MOST_AGENTS
    )


def _has_ended(run: FlowRun) -> bool:
    return run.state is None or run.state.is_final()
