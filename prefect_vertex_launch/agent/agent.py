"""The agent: takes run queue items under the concurrency limits and supervises their launches.

Every launch is a flow run of its own in this event loop, so thousands of waiting items cost one
process. The agent keeps nothing that cannot be found again in W&B, Prefect and Vertex AI: when it
stops or dies the jobs run on, and the next agent carries their launches on.

An agent may serve several queues, of several entities, projects and regions, each with the
credentials of its own block. Queues that share a limit take turns; others do not wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect import State, flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.runtime import flow_run as runtime
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed, Failed

from prefect_vertex_launch.agent.queue_worker import QueueServer, StartLaunch, Tally
from prefect_vertex_launch.agent.round_robin import Rotation, by_shared_limits
from prefect_vertex_launch.agent.sigterm import on_termination
from prefect_vertex_launch.agent.standby import find_predecessor
from prefect_vertex_launch.agent.wandb_registration import Registration, register
from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.coordination.call_share import CallShare
from prefect_vertex_launch.coordination.heartbeat import Standing
from prefect_vertex_launch.coordination.mending import Mendings
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clock import Clock, SystemClock
from prefect_vertex_launch.core.errors import Conflict, LaunchError, Problem, Transient
from prefect_vertex_launch.core.retry import asked_pause_seconds
from prefect_vertex_launch.flows.launch_engine import start_launch
from prefect_vertex_launch.launch.queue_context import LaunchSession, open_session, own_flow_run_id

logger = logging.getLogger("prefect.vertex-launch.agent")

CONTACT_SECONDS = 15.0

STOOD_ASIDE = "StoodAside"

DRAINED = "the queue is drained"
MAX_RUNTIME = "its time is over"
STOPPED_BY_WANDB = "W&B asked it to stop polling"
TERMINATED = "its process was asked to end (SIGTERM)"
CANCELLED_IN_PREFECT = "its flow run was cancelled in Prefect"


def _run_name() -> str:
    return f"agent {', '.join(runtime.parameters['queues'])}"


# PREFECT_FLOWS_DEFAULT_RETRIES would make an agent that has ended serve its queues once more.
@flow(name="agent", flow_run_name=_run_name, retries=0, persist_result=False, log_prints=False)
async def agent(
    queues: list[str],
    drain: bool = False,
    max_runtime_minutes: float | None = 60,
    stand_aside: bool = False,
) -> State[Any]:
    """Launch the runs of W&B queues on Vertex AI.

    Args:
        queues: Names of VertexLaunchQueue blocks, one for each queue.
        drain: End when the queues are empty and every launch has ended.
        max_runtime_minutes: End after this time and leave what is under way to the next agent;
            empty for no end.
        stand_aside: End at once if an agent that began earlier is at work on one of the queues.
    """
    # For each flow run that sends heartbeats Prefect keeps a thread, and here may be a thousand launches:
    # the agent's own heartbeat speaks for them all.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(get_client())
            work = Agent(client, own_flow_run_id(), drain=drain, max_runtime_minutes=max_runtime_minutes)
            stack.enter_context(on_termination(lambda: work.end_for(TERMINATED)))
            if stand_aside and (other := await work.predecessor(queues)):
                return Completed(name=STOOD_ASIDE, message=f"{other} is at work.")
            for queue in dict.fromkeys(queues):
                await work.open(queue, stack)
            reason = await work.run()
    message = f"Ended because {reason}. {work.tally}"
    if work.failures:
        unserved = " ".join(f"{queue} was not served: {error}" for queue, error in work.failures.items())
        return Failed(message=f"{message} {unserved}")
    if reason == CANCELLED_IN_PREFECT:
        return Cancelled(message=message)
    return Completed(message=message)


class Agent:
    """One agent's work: open the queues, register, adopt what another agent left, serve, hand over.

    `failures` are the queues that cannot be served, with why; the others are served all the same.
    """

    def __init__(
        self,
        client: PrefectClient,
        flow_run_id: UUID,
        *,
        drain: bool = False,
        max_runtime_minutes: float | None = None,
        clock: Clock | None = None,
        start: StartLaunch = start_launch,
    ) -> None:
        self.failures: dict[str, Exception] = {}
        self._client = client
        self._drain = drain
        self._clock = clock or SystemClock()
        self._flow_run_id = flow_run_id
        self._start = start
        self._standing = Standing(client, flow_run_id, clock=self._clock)
        self._deadline = (
            None if max_runtime_minutes is None else self._clock.monotonic() + max_runtime_minutes * 60
        )
        self._sessions: list[LaunchSession] = []
        self._call_share = CallShare(
            client, flow_run_id, flow_name=agent.name, sessions=self._sessions, clock=self._clock
        )
        self._mendings = Mendings(client, clock=self._clock)
        self._rotations: list[Rotation] = []
        self._registrations: list[Registration] = []
        self._unregistered: list[QueueServer] = []
        self._queue_ids: dict[LaunchSession, str] = {}
        self._wakes: list[asyncio.Event] = []
        self._stop_reason: str | None = None

    @property
    def tally(self) -> Tally:
        """What was done for all queues."""
        return sum((server.tally for server in self._servers()), Tally())

    async def predecessor(self, queues: Sequence[str]) -> str | None:
        """Return the name of an agent that began earlier and is at work on one of these queues, if any."""
        found = await find_predecessor(
            self._client,
            self._flow_run_id,
            queues,
            flow_name=agent.name,
            is_over=lambda: self._stop_reason is not None,
            clock=self._clock,
        )
        return found and found.name

    async def open(self, queue: str, stack: contextlib.AsyncExitStack) -> None:
        """Open a queue's clients until `stack` ends; what is wrong with it is in `failures`."""
        try:
            session = await stack.enter_async_context(open_session(queue, clock=self._clock))
        except (LaunchError, ValueError) as error:  # ValueError is Prefect's for a block that is not there
            self._give_up(queue, error)
        else:
            self._add_unless_served(session)

    def _add_unless_served(self, session: LaunchSession) -> None:
        block = session.block
        for other in self._sessions:
            if _address(other.block) == _address(block):
                problem = Problem(
                    f"block {session.block_name}",
                    f"it is of the queue {block.entity}/{block.queue}, as block {other.block_name} is",
                    why="one agent serves a queue once",
                    fix="Name one of the two blocks.",
                )
                self._give_up(session.block_name, Conflict(problem))
                return
        self.add(session)

    def add(self, session: LaunchSession) -> None:
        """Serve the queue of an open session."""
        session.standing = self._standing
        self._sessions.append(session)

    async def run(self) -> str:
        """Serve the queues until there is a reason to end, and return that reason.

        Raises the first queue's own error, such as AuthenticationFailed or NotFound, when none of them
        can be served.
        """
        await self._prepare()
        if not self._rotations:
            raise next(iter(self.failures.values()), ValueError("no queue was named"))
        try:
            async with contextlib.AsyncExitStack() as stack:
                for server in self._servers():
                    await stack.enter_async_context(server.slots_renewed())
                for duty, name in (
                    (self._keep_beating, "the heartbeat"),
                    (self._call_share.keep_sharing, "the share of calls"),
                    (self._keep_in_touch, "the contact to W&B"),
                    (self._keep_looking_for_cancel, "the look for a cancel in Prefect"),
                ):
                    await stack.enter_async_context(in_background(duty, name, self._clock))
                try:
                    async with asyncio.TaskGroup() as group:
                        for rotation in self._rotations:
                            group.create_task(self._serve(rotation))
                finally:
                    await asyncio.gather(*(server.hand_over() for server in self._servers()))
        finally:
            await asyncio.gather(*(registration.end() for registration in self._registrations))
        reason = self._reason_to_end() or DRAINED
        logger.info("Agent ends because %s. %s", reason, self.tally)
        return reason

    async def _prepare(self) -> None:
        """Make a server of each queue that can be served, in groups that share a limit, and register them."""
        sessions = [session for session in self._sessions if await self._can_serve(session)]
        groups: list[tuple[asyncio.Event, list[QueueServer]]] = []
        for members in by_shared_limits([session.block.shared_limits for session in sessions]):
            wake = asyncio.Event()
            groups.append((wake, [self._server(sessions[index], wake) for index in members]))
        self._unregistered = [server for _, servers in groups for server in servers]
        await self._register()
        for wake, servers in groups:
            served = [server for server in servers if server.session.block_name not in self.failures]
            if served:
                self._wakes.append(wake)
                self._rotations.append(Rotation(served, wake=wake, clock=self._clock))

    async def _can_serve(self, session: LaunchSession) -> bool:
        """Whether a queue is there; one that cannot be asked for now may be, and its launches go on."""
        try:
            await self._server(session, asyncio.Event()).prepare()
            await self._queue_id(session)
        except Transient as error:
            logger.warning("Queue %s takes no items for now: %s", session.block_name, error)
        except LaunchError as error:
            self._give_up(session.block_name, error)
            return False
        return True

    async def _register(self) -> None:
        """Register those servers at W&B that are not yet, together for each entity.

        Who is refused before anything is served serves nothing; later what is under way goes on.
        """
        by_entity: dict[tuple[str, str], list[QueueServer]] = {}
        for server in self._unregistered:
            base_url, entity, _ = _address(server.session.block)
            by_entity.setdefault((base_url, entity), []).append(server)
        for servers in by_entity.values():
            try:
                queue_ids = [await self._queue_id(server.session) for server in servers]
                registration = await register(servers, queue_ids)
            except LaunchError as error:
                if isinstance(error, Transient) or self._rotations:
                    logger.warning("This agent is not registered at W&B for now: %s", error)
                    continue
                for server in servers:
                    self._give_up(server.session.block_name, error)
            else:
                self._registrations.append(registration)
            self._unregistered = [server for server in self._unregistered if server not in servers]

    async def _queue_id(self, session: LaunchSession) -> str:
        if session not in self._queue_ids:
            self._queue_ids[session] = (await session.wandb.find_queue()).queue_id
        return self._queue_ids[session]

    def _server(self, session: LaunchSession, wake: asyncio.Event) -> QueueServer:
        return QueueServer(
            session,
            self._client,
            agent_run_id=self._flow_run_id,
            wake=wake,
            mendings=self._mendings,
            start=self._start,
        )

    def _give_up(self, queue: str, error: Exception) -> None:
        logger.error("Queue %s cannot be served: %s", queue, error)
        self.failures[queue] = error

    def _servers(self) -> Sequence[QueueServer]:
        return [server for rotation in self._rotations for server in rotation.servers]

    async def _serve(self, rotation: Rotation) -> None:
        """Serve queues, and adopt what other agents left, first of all and again and again."""
        async with contextlib.AsyncExitStack() as stack:
            for server in rotation.servers:
                await server.try_to_adopt()
                await stack.enter_async_context(in_background(server.keep_adopting, "adoption", self._clock))
            await rotation.serve(drain=self._drain, is_over=lambda: self._reason_to_end() is not None)

    def _reason_to_end(self) -> str | None:
        if self._deadline is not None and self._clock.monotonic() >= self._deadline:
            return MAX_RUNTIME
        return self._stop_reason

    async def _keep_beating(self) -> None:
        await self._standing.keep_beating(self._look_at_own)

    async def _look_at_own(self) -> None:
        for server in self._servers():
            await server.let_go_of_others()

    async def _keep_in_touch(self) -> None:
        while True:
            pause_seconds = CONTACT_SECONDS
            await self._register()
            try:
                for registration in self._registrations:
                    await registration.say_what_it_does(is_ending=self._reason_to_end() is not None)
                    if await registration.is_to_stop():
                        self.end_for(STOPPED_BY_WANDB)
            except LaunchError as error:
                logger.warning("W&B could not be asked whether this agent is to stop: %s", error)
                pause_seconds = max(pause_seconds, asked_pause_seconds(error))
            await self._clock.sleep(pause_seconds)

    async def _keep_looking_for_cancel(self) -> None:
        while True:
            try:
                own = await self._client.read_flow_run(self._flow_run_id)
                if own.state is not None and own.state.is_cancelling():
                    self.end_for(CANCELLED_IN_PREFECT)
            except httpx.HTTPError as error:
                logger.warning("Prefect could not be asked whether this agent is to stop: %s", error)
            await self._clock.sleep(CONTACT_SECONDS)

    def end_for(self, reason: str) -> None:
        """Make the agent end as soon as it can leave what is under way to the next one."""
        self._stop_reason = self._stop_reason or reason
        for wake in self._wakes:
            wake.set()


def _address(block: VertexLaunchQueue) -> tuple[str, str, str]:
    return block.wandb_credentials.base_url, block.entity, block.queue
