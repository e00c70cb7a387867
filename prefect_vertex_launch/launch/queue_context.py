"""What the launches of one queue share in one event loop: clients, watchers, stop requests.

An agent opens one session for each of its queues; a `launch` flow run that a worker started on its
own opens one for itself. Nothing here needs to survive: a session can be opened again at any time
from the block, and the live launches are found again in Prefect, W&B and Vertex AI.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run as runtime

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.coordination.flow_run_page import FlowRunPage
from prefect_vertex_launch.coordination.heartbeat import Standing
from prefect_vertex_launch.coordination.submission_rate import SubmissionPace
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clock import Clock, SystemClock, unless_any
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.regions import Regions
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import WandbQueue


@dataclass(eq=False)
class LaunchSession:
    """The clients of one queue and the launches that use them.

    `agent_name` is the W&B run of the launch agent, which keeps the files of failed items.
    """

    block_name: str
    block: VertexLaunchQueue
    wandb: WandbQueue
    regions: Regions
    page: FlowRunPage
    clock: Clock
    agent_name: str | None = None
    live: dict[str, LiveLaunch] = field(default_factory=dict)
    # The standing of the agent that the launches belong to; a launch of its own has none to lose.
    standing: Standing | None = None
    # What all agents keep to together when they submit; without Prefect there is none.
    pace: SubmissionPace | None = None
    # Cleared while items are being started: what can wait then leaves Prefect's server to them.
    calm: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.calm.set()

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can have taken the launches over."""
        return self.standing is None or self.standing.is_sure

    async def until_sure(self, live: LiveLaunch) -> bool:
        """Wait until nobody else can have taken the launch over; False if one has, or it is to be left."""
        return self.standing is None or await self.standing.until_sure(live)

    async def may_submit(self, live: LiveLaunch) -> bool:
        """Wait until nobody else can have the launch; False if one has, or it is to be left or ended."""
        is_sure = await self.until_sure(live)
        return is_sure and not (live.leave.is_set() or live.stop_requested.is_set())

    def has_slot(self, live: LiveLaunch) -> bool:
        """Whether a launch may create a job under its slot; one that may have lost it has to wait for it."""
        if live.slot.may_have_ended(self.clock.monotonic()):
            live.slot.admits.clear()
        return live.slot.admits.is_set()

    async def turn_to_submit(self, live: LiveLaunch, jobs: VertexJobs) -> float | None:
        """Wait for a job's turn among all that are submitted to a region, and return it.

        None means that the launch is to be left or ended first.
        """
        ends = (live.leave, live.stop_requested)
        if self.pace is not None and not await self.pace.take(jobs.location, unless=ends):
            return None
        return await unless_any(jobs.turn_to_create(), *ends)


_current: ContextVar[LaunchSession | None] = ContextVar("vertex_launch_session", default=None)


def current_session() -> LaunchSession:
    """Return the session this code runs in; RuntimeError outside of one."""
    session = _current.get()
    if session is None:
        raise RuntimeError("no launch session is open: tasks of `launch` run inside of its flow")
    return session


def make_current(session: LaunchSession) -> None:
    """Make this the session of the code that runs in the current context from here on."""
    _current.set(session)


def own_flow_run_id() -> UUID:
    """Return the id of the flow run this code runs in (Prefect's runtime gives its text)."""
    return UUID(runtime.id)


@contextlib.asynccontextmanager
async def enter_session(block_name: str) -> AsyncIterator[LaunchSession]:
    """Yield the agent's session if this runs inside of one for the same queue, else open one.

    Raises ValueError when there is no such block, and AuthenticationFailed when its credentials
    cannot be used.
    """
    session = _current.get()
    if session is not None and session.block_name == block_name:
        yield session
        return
    async with open_session(block_name) as session:
        token = _current.set(session)
        try:
            yield session
        finally:
            _current.reset(token)


@contextlib.asynccontextmanager
async def open_session(block_name: str, *, clock: Clock | None = None) -> AsyncIterator[LaunchSession]:
    """Load the block, open its clients and start the loops that serve every launch of the session."""
    from prefect_vertex_launch.launch.stop_requests import watch_stops

    block = await VertexLaunchQueue.aload(block_name)
    clock = clock or SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        wandb = await stack.enter_async_context(block.open_wandb_queue())
        regions = Regions(block, stack, clock=clock)
        await regions.at(block.location)
        client = await stack.enter_async_context(get_client())
        session = LaunchSession(
            block_name=block_name,
            block=block,
            wandb=wandb,
            regions=regions,
            page=FlowRunPage(client),
            clock=clock,
            pace=SubmissionPace(
                client,
                project=block.project,
                submissions_per_minute=block.submissions_per_minute,
                clock=clock,
            ),
        )
        await stack.enter_async_context(
            in_background(lambda: watch_stops(session), "the watch for stop requests", clock)
        )
        yield session
