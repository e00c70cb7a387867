"""What the launches of one queue share in one event loop: clients, the watcher, stop requests.

An agent opens one session for all of its launches; a `launch` flow run that a worker started on its
own opens one for itself. Nothing here needs to survive: a session can be opened again at any time
from the block, and the live launches are found again in Prefect, W&B and Vertex AI.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from prefect.runtime import flow_run as runtime
from pydantic import SecretStr

from blocks.vertex_queue import VertexLaunchQueue
from flows.queue_item import QueueItem
from vertex_launch.clock import Clock, SystemClock
from vertex_launch.job_watcher import JobWatcher
from vertex_launch.lifecycle import JobRecord, StopRequest
from vertex_launch.render import QUEUE_LABEL, Rendering, queue_key
from vertex_launch.run_spec import RunSpec
from vertex_launch.vertex_jobs import VertexJobs
from vertex_launch.wandb_queue import RunPath, WandbQueue

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LiveLaunch:
    """One launch that is under way in this process, and what its tasks have found out so far."""

    item: QueueItem
    flow_run_id: UUID
    api_key: SecretStr | None = None
    spec: RunSpec | None = None
    run: RunPath | None = None
    rendering: Rendering | None = None
    job: JobRecord | None = None
    stop: StopRequest | None = None
    stop_requested: asyncio.Event = field(default_factory=asyncio.Event)
    job_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def request_stop(self, stop: StopRequest) -> None:
        """Ask for the job's end; the first one who asked is remembered."""
        if self.stop is None:
            self.stop = stop
            self.stop_requested.set()


@dataclass(eq=False)
class LaunchSession:
    """The clients of one queue and the launches that use them."""

    block_name: str
    block: VertexLaunchQueue
    wandb: WandbQueue
    jobs: VertexJobs
    watcher: JobWatcher
    clock: Clock
    live: dict[str, LiveLaunch] = field(default_factory=dict)
    handover: asyncio.Event = field(default_factory=asyncio.Event)
    # Cleared while items are being started: what can wait then leaves Prefect's server to them.
    calm: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.calm.set()


_current: ContextVar[LaunchSession | None] = ContextVar("vertex_launch_session", default=None)


def current_session() -> LaunchSession:
    """Return the session this code runs in; RuntimeError outside of one."""
    session = _current.get()
    if session is None:
        raise RuntimeError("no launch session is open: tasks of `launch` run inside of its flow")
    return session


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
        yield session


@contextlib.asynccontextmanager
async def open_session(block_name: str, *, clock: Clock | None = None) -> AsyncIterator[LaunchSession]:
    """Load the block, open its clients and start the loops that serve every launch of the session."""
    from flows.stops import watch_stops

    block = await VertexLaunchQueue.aload(block_name)
    async with contextlib.AsyncExitStack() as stack:
        wandb = await stack.enter_async_context(block.open_wandb_queue())
        jobs = block.open_vertex_jobs()
        stack.push_async_callback(jobs.aclose)
        clock = clock or SystemClock()
        watcher = JobWatcher(
            jobs,
            labels={QUEUE_LABEL: queue_key(block.entity, block.queue)},
            interval_seconds=block.watch_seconds,
            clock=clock,
        )
        session = LaunchSession(
            block_name=block_name, block=block, wandb=wandb, jobs=jobs, watcher=watcher, clock=clock
        )
        await stack.enter_async_context(in_background(watcher.run, "the job watcher", clock))
        await stack.enter_async_context(
            in_background(lambda: watch_stops(session), "the watch for stop requests", clock)
        )
        token = _current.set(session)
        try:
            yield session
        finally:
            _current.reset(token)


@contextlib.asynccontextmanager
async def in_background(
    work: Callable[[], Awaitable[None]], name: str, clock: Clock, *, restart_seconds: float = 5.0
) -> AsyncIterator[None]:
    """Run an endless `work` beside the body and end it with the body.

    Should it fail in a way nobody foresaw it is started again: one broken answer must not leave
    every waiting launch without its watcher.
    """

    async def keep_running() -> None:
        while True:
            try:
                await work()
            except Exception:
                logger.exception("%s failed and starts again in %.0f s", name, restart_seconds)
            await clock.sleep(restart_seconds)

    task = asyncio.create_task(keep_running(), name=name)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
