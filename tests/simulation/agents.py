"""The real agent in a simulated process, and the deployment that starts one again when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx
from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from prefect.states import Completed, Crashed, Failed, Running

from prefect_vertex_launch.agent.agent import Agent
from prefect_vertex_launch.agent.supervisor import StartLaunch
from prefect_vertex_launch.blocks.gcp_credentials import GcpCredentials
from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.errors import LaunchError
from prefect_vertex_launch.core.shared_limit import shared_limit_name
from prefect_vertex_launch.flows.launch import see_through
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.queue_context import QueueContext
from prefect_vertex_launch.launch.regions import Regions
from prefect_vertex_launch.launch.stop_requests import watch_stops
from tests.simulation import task_engine
from tests.simulation.faults import Freeze
from tests.simulation.ports import PagePort, PrefectPort, VertexPort, WandbPort
from tests.simulation.process import Process, current
from tests.simulation.vertex_model import LOCATION, PROJECT
from tests.simulation.wandb_model import ENTITY, QUEUE
from tests.simulation.world import World

task_engine.install()

# What the platform gives a process between SIGTERM and SIGKILL.
TERMINATION_SECONDS = 30.0


@dataclass(frozen=True)
class Shape:
    """How many agents there are and how long each lives; `dies_every_seconds` is the mean."""

    agents: int = 1
    drain: bool = False
    max_runtime_minutes: float | None = None
    start_seconds: tuple[float, float] = (5.0, 5.0)
    dies_every_seconds: float | None = None
    terminated_share: float = 0.0
    # How likely nobody notices a death, as when the machine is lost with everything on it.
    unnoticed_share: float = 0.0


class _Block:
    """The queue's block, with Vertex AI's model behind it."""

    def __init__(self, block: VertexLaunchQueue, world: World, process: Process) -> None:
        self.identity = block.identity
        self.project, self.location = block.project, block.location
        self.watch_seconds = block.watch_seconds
        self._world = world
        self._process = process

    def open_vertex_jobs(self, location: str, _project: str, **_options: Any) -> VertexPort:
        return VertexPort(self._world, self._process, location)


def make_block(max_jobs: int, *, is_shared: bool = False, **changes: Any) -> VertexLaunchQueue:
    """Return the block of the simulated queue, whose limit is its own, or one that queues share."""
    pool = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": {"image_uri": "${image_uri}"},
    }
    return VertexLaunchQueue(
        entity=ENTITY,
        queue=QUEUE,
        project=PROJECT,
        location=LOCATION,
        staging_bucket="gs://bucket",
        wandb_credentials=WandbCredentials(api_key="x" * 40),
        gcp_credentials=GcpCredentials.model_construct(),
        max_jobs=-1 if is_shared else max_jobs,
        shared_limits=[shared_limit_name(ENTITY)] if is_shared else [],
        spec={"worker_pool_specs": [pool]},
        poll_seconds=20.0,
        watch_seconds=15.0,
        endpoint="grpc://vertex.invalid:1",
    ).model_copy(update=changes)


def engine_of(world: World, process: Process, client: PrefectPort) -> StartLaunch:
    """Return how a launch's flow run is started: as Prefect's engine does it."""

    async def run(flow_run: FlowRun, context: QueueContext) -> State[Any]:
        state = await client.set_flow_run_state(flow_run.id, Running())
        if not state.is_running():
            return state
        item = QueueItem.model_validate(flow_run.parameters["item"])
        launch = context.live.get(item.item_id) or Launch(item, flow_run.id, context)
        try:
            ended = await see_through(launch)
        except Abort:
            raise
        except asyncio.CancelledError:
            with contextlib.suppress(httpx.HTTPError, asyncio.CancelledError):
                await client.set_flow_run_state(flow_run.id, Crashed(), force=True)
            raise
        except Exception as error:
            if not isinstance(error, httpx.HTTPError):
                world.surprise(f"the launch of item {item.item_id}: {error!r}")
            ended = Failed(message=str(error))
        return await client.set_flow_run_state(flow_run.id, ended)

    def start(flow_run: FlowRun, context: QueueContext) -> asyncio.Task[State[Any]]:
        return asyncio.create_task(run(flow_run, context), name=f"launch {flow_run.name}")

    return start


async def run_process(world: World, process: Process, block: VertexLaunchQueue, shape: Shape) -> None:
    """Run the process of one agent to its end."""
    try:
        await _serve(world, process, block, shape)
    finally:
        await process.end()


async def _serve(world: World, process: Process, block: VertexLaunchQueue, shape: Shape) -> None:
    """Serve the queue, and tell Prefect how the agent ended."""
    client = PrefectPort(world, process)
    async with contextlib.AsyncExitStack() as stack:
        wandb = WandbPort(world, process)
        regions = Regions(
            cast("Any", _Block(block, world, process)), stack, clock=process.clock, on_denied=lambda: None
        )
        context = QueueContext(
            block_name="queue",
            block=block,
            wandb=cast("Any", wandb),
            regions=regions,
            page=cast("Any", PagePort(world, process, client)),
            clock=process.clock,
        )
        await stack.enter_async_context(
            in_background(lambda: watch_stops(context), "the watch for stop requests", process.clock)
        )
        agent = Agent(
            cast("Any", client),
            process.flow_run_id,
            drain=shape.drain,
            max_runtime_minutes=shape.max_runtime_minutes,
            clock=process.clock,
            start=engine_of(world, process, client),
        )
        agent.add(context)
        ended: State[Any] = Crashed()
        try:
            ended = Completed(message=await agent.run())
        except* (LaunchError, httpx.HTTPError) as errors:
            ended = Failed(message=repr(errors))
    if not process.is_dead:
        with contextlib.suppress(httpx.HTTPError):
            await client.set_flow_run_state(process.flow_run_id, ended, force=True)


class Deployment:
    """Keeps as many agents running as there are to be, and lets them die.

    The first agent has the first of the queue's blocks, the next one the second, and all others the last.
    """

    def __init__(self, world: World, blocks: Sequence[VertexLaunchQueue], shape: Shape) -> None:
        self._world = world
        self._blocks = blocks
        self._shape = shape
        self._running: dict[Process, asyncio.Task[None]] = {}
        self._started = 0
        self.deaths = 0
        world.on_death = self._has_died
        for freeze in world.faults.freezes:
            world.loop.call_at(freeze.start, self._freeze, freeze)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Start agents until it is over; then wait for their ends."""
        world, shape = self._world, self._shape
        while not is_over():
            if len(self._running) < shape.agents:
                if self._started >= shape.agents:
                    await world.clock.sleep(world.random.uniform(*shape.start_seconds))
                self._start()
            else:
                await world.clock.sleep(5.0)
        world.wandb.stops_polling = True
        while self._running:
            await world.clock.sleep(5.0)

    def _start(self) -> None:
        world = self._world
        taken = {process.place for process in self._running}
        place = next(place for place in range(self._shape.agents) if place not in taken)
        name = f"agent{self._started}"
        process = Process(name, world.prefect.start_agent_run(), place, world.loop)
        world.processes[process.flow_run_id] = process
        block = self._blocks[min(self._started, len(self._blocks) - 1)]
        self._started += 1
        token = current.set(process)
        task = asyncio.get_running_loop().create_task(run_process(world, process, block, self._shape))
        current.reset(token)
        self._running[process] = task
        task.add_done_callback(lambda task: self._has_ended(process, task))
        if (minutes := self._shape.max_runtime_minutes) is not None:
            world.loop.call_later(minutes * 60, process.begin_to_end)
        if self._shape.dies_every_seconds is not None:
            delay = world.random.expovariate(1 / self._shape.dies_every_seconds)
            if world.loop.time() + delay < world.faults.until:
                world.loop.call_later(delay, self._end, process)

    def _freeze(self, freeze: Freeze) -> None:
        for process in self._running:
            if process.place == freeze.place:
                self._world.note(process.name, f"stands still until {freeze.end:.2f} s")
                process.freeze(freeze.end)

    def _end(self, process: Process) -> None:
        if process not in self._running or process.is_dead:
            return
        if self._world.random.random() < self._shape.terminated_share:
            self._world.note(process.name, "is told to end (SIGTERM)")
            process.begin_to_end()
            self._running[process].cancel()
            self._world.loop.call_later(TERMINATION_SECONDS, self._kill_if_running, process)
        else:
            self._world.kill(process)

    def _kill_if_running(self, process: Process) -> None:
        if process in self._running:
            self._world.kill(process)

    def _has_died(self, process: Process) -> None:
        self.deaths += 1
        world = self._world
        if world.random.random() >= self._shape.unnoticed_share:
            delay = world.random.uniform(1.0, 30.0)
            world.loop.call_later(
                delay, lambda: world.prefect.set_state(process.flow_run_id, Crashed(), force=True)
            )

    def _has_ended(self, process: Process, task: asyncio.Task[None]) -> None:
        self._running.pop(process, None)
        process.begin_to_end()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._world.surprise(f"{process.name}: {error!r}")
        if task.cancelled() and not process.is_dead:
            self._has_died(process)
