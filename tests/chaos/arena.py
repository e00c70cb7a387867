"""One queue with its servers, its agents and its items, and the audit of what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from prefect.client.orchestration import get_client

from prefect_vertex_launch.cli.migrate.migration import UNLIMITED
from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.core.shared_limit import shared_limit_name
from tests.chaos import auditor
from tests.chaos.auditor import Evidence, FlowRun, PrefectSide
from tests.chaos.nursery import AgentProcess, Nursery, nursery
from tests.chaos.servers import PrefectProcess, SandboxProcess, last_lines
from tests.chaos.slot_trace import leases
from tests.chaos.watch import Watch, watching
from tests.chaos.workload import Workload
from tests.end_to_end.launch_queue import LaunchQueue

# A dead agent is noticed after seconds instead of minutes; what is half of what stays half of it.
QUICK: Mapping[str, Any] = {
    "prefect_vertex_launch.coordination.heartbeat.HEARTBEAT_SECONDS": 0.25,
    "prefect_vertex_launch.coordination.heartbeat.DOUBT_SECONDS": 1.0,
    "prefect_vertex_launch.coordination.heartbeat.GONE_SECONDS": 2.0,
    "prefect_vertex_launch.coordination.heartbeat.LOOK_AWAY_SECONDS": 2.5,
    "prefect_vertex_launch.agent.queue_worker.ADOPTION_SECONDS": 0.5,
    # Prefect grants no lease of less than a minute.
    "prefect_vertex_launch.coordination.slots.LEASE_SECONDS": 60.0,
    "prefect_vertex_launch.coordination.slots.RENEWAL_SECONDS": 20.0,
    "prefect_vertex_launch.coordination.mending.EXCESS_SECONDS": 70.0,
    "prefect_vertex_launch.coordination.mending.SPREAD_SECONDS": 2.0,
    "prefect_vertex_launch.coordination.launch_store.CONFIRM_SECONDS": 0.3,
    "prefect_vertex_launch.coordination.launch_store.CRASH_PAUSE_SECONDS": 0.5,
    "prefect_vertex_launch.coordination.launch_store.MAX_CRASH_PAUSE_SECONDS": 2.0,
    # The sandbox lists a job as soon as there is one.
    "prefect_vertex_launch.launch.find_jobs.LOOK_AGAIN_SECONDS": (0.2, 0.5),
    "prefect_vertex_launch.launch.find_jobs.LAST_LOOKS_SECONDS": (0.2, 0.5),
    "prefect_vertex_launch.launch.stop_requests.STOP_POLL_SECONDS": 0.5,
    "prefect_vertex_launch.launch.outage.FIRST_PAUSE_SECONDS": 1.0,
    "prefect_vertex_launch.launch.outage.MAX_PAUSE_SECONDS": 4.0,
    "prefect_vertex_launch.agent.round_robin.MAX_BACKOFF_SECONDS": 2.0,
    "prefect_vertex_launch.vertex.job_watcher.MAX_BACKOFF_SECONDS": 2.0,
}
LEASE_SECONDS = 3.0
LOOK_SECONDS = 0.2
ASKING_SECONDS = 0.01
SETTLE_SECONDS = 90.0
TAKEN = frozenset({"CLAIMED", "FAILED"})
# One that has crashed goes on with the next agent.
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})


@dataclass(eq=False)
class Arena:
    """What a scenario works with; `kills` counts by what was killed and how, `others` what else happened.

    `prefect_server` is there if it may be killed; `has_outages` says that servers were. With `ends_leases`
    the leases that nobody has any more are ended at once, and not by themselves a minute later: a limit of
    few slots would have to wait for them.
    """

    directory: Path
    random: Random
    sandbox: SandboxProcess
    prefect: PrefectSide
    nursery: Nursery
    workload: Workload
    max_jobs: int
    watch: Watch
    prefect_server: PrefectProcess | None = None
    ends_leases: bool = False
    has_outages: bool = False
    kills: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    others: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    flow_run_ids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    started: float = field(default_factory=time.monotonic)
    moments: dict[str, float] = field(default_factory=dict[str, float])

    def mark(self, what: str) -> None:
        """Remember when it came to something."""
        self.moments[what] = time.monotonic() - self.started

    async def start_agent(self, point: tuple[str, str, int] | None = None) -> AgentProcess:
        """Start `vertex-launch agent` for the queue."""
        return await self.nursery.start(("agent", "--queue", self.workload.identity.queue), point)

    async def kill(self, agent: AgentProcess, how: str = "agent, at random") -> None:
        """`kill -9` an agent, and count it."""
        if not agent.is_alive:
            return
        if self.ends_leases:
            await self._until_it_knows_its_leases(agent)
        await agent.kill()
        self.kills[how] += 1
        await self._see_to_leases(agent)

    async def count_death(self, agent: AgentProcess) -> None:
        """Count an agent that has ended by itself. Raises RuntimeError if it was not to."""
        code = agent.ended.result()
        if code == -signal.SIGKILL and agent.point is not None:
            when, effect, _ = agent.point
            self.kills[how_at(when, effect)] += 1
        elif self.has_outages and not agent.serves:
            self.others["agents that did not start in an outage"] += 1
        elif not agent.is_asked_to_end:
            raise RuntimeError(f"agent {agent.number} ended with {code}:\n{last_lines(agent.log)}")
        await self._see_to_leases(agent)

    async def _until_it_knows_its_leases(self, agent: AgentProcess) -> None:
        """Stop an agent at a moment at which it has an answer to each request for a slot."""
        while agent.is_alive:
            agent.send(signal.SIGSTOP)
            if not leases(agent.log).unanswered:
                return
            agent.send(signal.SIGCONT)
            await asyncio.sleep(ASKING_SECONDS)

    async def _see_to_leases(self, agent: AgentProcess) -> None:
        """End the leases that a dead agent had in hand, but for those that a launch has all the same."""
        if self.ends_leases and (in_hand := leases(agent.log).in_hand):
            noted = await self.prefect.noted()
            for lease in in_hand:
                if lease not in noted:
                    await self.prefect.end_lease(lease)

    async def _end_what_the_dead_had(self) -> None:
        """End the leases that only dead agents have had: every launch has ended, with another slot.

        What one that is alive has had since is its own to give back.
        """
        everybody = [(agent.is_alive, leases(agent.log)) for agent in self.nursery.agents]
        taken_up = {lease for is_alive, its in everybody if is_alive for lease in its.ever}
        for lease in {lease for is_alive, its in everybody if not is_alive for lease in its.held} - taken_up:
            await self.prefect.end_lease(lease)

    async def push_up_to(self, waiting: int) -> None:
        """Push items until so many wait at W&B; while it is away nothing is pushed."""
        with contextlib.suppress(httpx.HTTPError):
            states = await self.workload.states()
            pending = sum(state == "PENDING" for state in states.values())
            await self.workload.push(max(0, waiting - pending))
            await self.look()

    async def look(self) -> list[FlowRun]:
        """Return the launches as they are, and remember which flow run each item has."""
        flow_runs = await self.prefect.flow_runs()
        for run in flow_runs:
            self.flow_run_ids[run.item_id].add(run.flow_run_id)
        return flow_runs

    async def open_items(self) -> set[str]:
        """Return the items that have not ended at Prefect and at W&B; all, while one of them is away."""
        try:
            launched = {run.item_id for run in await self.look() if run.state in FINAL}
            taken = {item_id for item_id, state in (await self.workload.states()).items() if state in TAKEN}
        except httpx.HTTPError:
            return {*self.workload.expected}
        return {*self.workload.expected} - (launched & taken)

    async def until_ended(self, *, seconds: float) -> None:
        """Wait until every item has ended. Raises TimeoutError with those that have not."""
        is_open: set[str] = set()
        try:
            async with asyncio.timeout(seconds):
                while is_open := await self.open_items():
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise TimeoutError(f"after {seconds:.0f} s these have not ended: {sorted(is_open)}") from None
        self.mark("all had ended")

    async def stop_agents(self) -> list[int]:
        """End the agents as a deployment does, and return how they have ended."""
        alive = self.nursery.alive
        for agent in alive:
            agent.send(signal.SIGTERM)
        return [await agent.ended for agent in alive]

    async def evidence(self) -> Evidence:
        """End everything and return what there is to see.

        Before that there is time for the leases of slots that agents died with, so that none is held.
        """
        if self.ends_leases:
            await self._end_what_the_dead_had()
        leaked = await self._least_slots()
        stopped = self.nursery.alive
        await self.stop_agents()
        # One that was just asking for a slot to look at an empty queue has left it to its lease.
        left = sum(leases(agent.log).most_in_hand for agent in stopped)
        flow_runs = await self.look()
        held = await self.prefect.held_slots()
        await self.sandbox.stop()
        items, jobs = auditor.read_state(self.sandbox.state)
        return Evidence(
            items=items,
            jobs=jobs,
            flow_runs=flow_runs,
            leaked_slots=leaked,
            held_slots=held,
            slots_in_hand=left,
            max_jobs=self.max_jobs,
            queue=self.workload.identity,
            expected=self.workload.expected,
            calls=auditor.read_calls(self.sandbox.request_log),
            cancelled=auditor.read_cancelled(self.sandbox.request_log),
            flow_run_ids=self.flow_run_ids,
            watched=[*self.watch.violations],
        )

    async def _least_slots(self) -> int:
        """Return how many slots are held at least from now on, be it for a moment between two looks."""
        least = await self.prefect.held_slots()
        deadline = time.monotonic() + SETTLE_SECONDS
        while least and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            least = min(least, await self.prefect.held_slots())
        return least


@contextlib.asynccontextmanager
async def arena(
    api_url: str,
    environment: Mapping[str, str],
    *,
    seed: int,
    max_jobs: int,
    job_seconds: float,
    is_shared: bool = False,
    prefect_server: PrefectProcess | None = None,
    ends_leases: bool = False,
    is_watched: bool = True,
    settings: Mapping[str, Any] = QUICK,
    lease_seconds: float = LEASE_SECONDS,
    **block: Any,
) -> AsyncIterator[Arena]:
    """A queue on a sandbox of its own. Should the body fail its seed is printed and its logs are kept.

    Its limit is one of its own, or one that queues share.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"vertex-launch-chaos-{seed}-"))
    print(f"\nseed {seed}, logs in {directory}")
    async with contextlib.AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(SandboxProcess(directory, lease_seconds=lease_seconds))
        queue, limit_name = await _make_queue(sandbox, max_jobs, block, is_shared=is_shared)
        born = nursery(directory, environment, settings, (sandbox.faults_url, sandbox.api_key))
        agents = await stack.enter_async_context(born)
        random = Random(seed)
        workload = Workload(sandbox, queue, random, job_seconds)
        prefect = PrefectSide(api_url, queue_tag=queue.tag, limit_name=limit_name)
        watch = Watch(max_jobs)
        if is_watched:
            await stack.enter_async_context(watching(watch, sandbox, workload, prefect))
        outside = (sandbox, prefect, agents)
        yield Arena(directory, random, *outside, workload, max_jobs, watch, prefect_server, ends_leases)


async def _make_queue(
    sandbox: SandboxProcess, max_jobs: int, block: Mapping[str, Any], *, is_shared: bool
) -> tuple[QueueIdentity, str]:
    """Return a queue and the name of its limit."""
    queue = LaunchQueue(sandbox, max_jobs=max_jobs)  # pyright: ignore[reportArgumentType] - as good as one
    if not is_shared:
        return queue.identity, (await queue.create(**block)).identity.limit_name
    limit_name = await _make_shared_limit(queue.name, max_jobs)
    await queue.create(**{**block, "max_jobs": UNLIMITED, "shared_limits": [limit_name]})
    return queue.identity, limit_name


def how_at(when: str, effect: str) -> str:
    """Return how a death at a named point is counted."""
    return f"agent, {when} {effect}"


async def _make_shared_limit(name: str, max_jobs: int) -> str:
    limit_name = shared_limit_name(name)
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(limit_name, max_jobs)
    return limit_name


def last_words(arena: Arena) -> str:
    """Return the ends of the logs of the latest agents."""
    return "\n\n".join(f"{agent.log}:\n{last_lines(agent.log)}" for agent in arena.nursery.agents[-3:])
