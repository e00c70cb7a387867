"""What the launches of one queue share in one event loop: its block, clients, watchers and launches.

An agent opens one context for each of its queues; a `launch` flow run that a worker started on its own opens
one for itself. Nothing here needs to survive: a context can be opened again at any time from the block, and
the live launches are found again in Prefect, W&B and Vertex AI.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.runtime import flow_run as runtime

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.coordination.flow_run_page import FlowRunPage
from prefect_vertex_launch.coordination.heartbeat import Heartbeat
from prefect_vertex_launch.coordination.prefect_api import load_block
from prefect_vertex_launch.coordination.prefect_client import prefect_client
from prefect_vertex_launch.coordination.submission_rate import SubmissionRate
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clock import Clock, SystemClock
from prefect_vertex_launch.core.secrets import own_secrets
from prefect_vertex_launch.launch.regions import Regions
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import WandbQueue

if TYPE_CHECKING:
    from prefect_vertex_launch.launch.launch import Launch


@dataclass(eq=False)
class QueueContext:
    """The clients of one queue and the launches that use them.

    Attributes:
        block_name: The name of the queue's block.
        block: The block.
        wandb: The client of the run queue.
        regions: The job services and watchers, by region.
        page: The pages of the launches in Prefect.
        clock: Where the time comes from.
        agent_name: The W&B run of the launch agent, which keeps the files of failed items.
        live: The launches that are under way here, by item.
        heartbeat: That of the agent which the launches belong to. A launch of its own has none.
        rate: The rate that all agents keep to together when they submit. Without Prefect there is none.
        block_wanted: Set when the block is to be read again: a key of it was not accepted.
        on_new_block: Called with the block after it was changed, by whoever serves the queue.
        burst_is_over: Cleared while items are being started. What can wait leaves Prefect's server to them.
    """

    block_name: str
    block: VertexLaunchQueue
    wandb: WandbQueue
    regions: Regions
    page: FlowRunPage
    clock: Clock
    agent_name: str | None = None
    live: dict[str, Launch] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None
    rate: SubmissionRate | None = None
    block_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    on_new_block: Callable[[VertexLaunchQueue], Awaitable[None]] | None = None
    burst_is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.burst_is_over.set()

    @property
    def services(self) -> list[VertexJobs]:
        """The job services that are open."""
        return self.regions.services

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can have taken the launches over."""
        return self.heartbeat is None or self.heartbeat.is_sure


_current: ContextVar[QueueContext | None] = ContextVar("vertex_launch_queue", default=None)


def make_current(context: QueueContext) -> None:
    """Make this the context of the flow run that the current task goes on to run."""
    _current.set(context)


def own_flow_run_id() -> UUID:
    """Return the id of the flow run this code runs in (Prefect's runtime gives its text)."""
    return UUID(runtime.id)


@contextlib.asynccontextmanager
async def enter_queue(block_name: str) -> AsyncIterator[QueueContext]:
    """Yield the agent's context if an agent started this flow run for the same queue, else open one.

    Raises NoSuchBlock, UnusableBlock, and AuthenticationFailed when its credentials cannot be used.
    """
    context = _current.get()
    if context is not None and context.block_name == block_name:
        yield context
        return
    async with open_queue(block_name) as opened:
        yield opened


@contextlib.asynccontextmanager
async def open_queue(block_name: str, *, clock: Clock | None = None) -> AsyncIterator[QueueContext]:
    """Load the block, open its clients and start the loops that serve every launch of the queue."""
    from prefect_vertex_launch.launch.block_reload import keep_reading
    from prefect_vertex_launch.launch.stop_requests import watch_stops

    block = await load_block(block_name)
    own_secrets.add(*block.secrets())
    clock = clock or SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        block_wanted = asyncio.Event()
        wandb = await stack.enter_async_context(block.open_wandb_queue(on_denied=block_wanted.set))
        regions = Regions(block, stack, clock=clock, on_denied=block_wanted.set)
        await regions.at(block.location)
        client = await stack.enter_async_context(prefect_client())
        context = QueueContext(
            block_name=block_name,
            block=block,
            wandb=wandb,
            regions=regions,
            page=FlowRunPage(client),
            clock=clock,
            block_wanted=block_wanted,
            rate=SubmissionRate(
                client,
                project=block.project,
                submissions_per_minute=block.submissions_per_minute,
                clock=clock,
            ),
        )
        await stack.enter_async_context(
            in_background(lambda: watch_stops(context), "the watch for stop requests", clock)
        )
        await stack.enter_async_context(
            in_background(lambda: keep_reading(context), f"the look at block {block_name}", clock)
        )
        yield context
