"""Reads one queue from Prefect, W&B and Vertex AI.

The launches are found by their tags, the jobs by their labels, and what still waits by the queue itself.
Nothing is kept here and nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from typing import Any, TypeVar

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.cli.status.item_status import ItemStatus, created_at, launched_status
from prefect_vertex_launch.coordination.launch_record import PRODUCT_TAG, parents_of
from prefect_vertex_launch.coordination.prefect_api import AGENT_FLOW, LAUNCH_FLOW, load_block, read_flow_runs
from prefect_vertex_launch.core.errors import LaunchError, NotFound
from prefect_vertex_launch.core.labels import ITEM_LABEL, QUEUE_LABEL
from prefect_vertex_launch.core.states import ItemState, JobRecord
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.regions import PARENT
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import WandbQueue

T = TypeVar("T")

_READS_AT_ONCE = 10
# The clocks of Prefect and Google need not agree to the second.
_CLOCK_LEEWAY = timedelta(minutes=5)
_ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED)
# A crashed launch is not ended: its job may run on, and the next agent takes it over.
_UNENDED = tuple(kind for kind in StateType if kind not in _ENDED)


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue: who serves it, how full it is, and its items; what waits first, then newest first.

    `slots_taken` is None while the queue has no limit. `problems` says what could not be read.
    """

    block: str
    queue: str
    project: str
    location: str
    max_jobs: int
    slots_taken: int | None
    agents: int
    items: tuple[ItemStatus, ...]
    problems: tuple[str, ...] = ()


@contextlib.asynccontextmanager
async def open_queue(client: PrefectClient, block_name: str) -> AsyncIterator[QueueReader]:
    """Yield a reader of one queue. Raises LaunchError or ValidationError when the block is unusable."""
    block = await load_block(block_name)
    async with contextlib.AsyncExitStack() as stack:
        wandb = await stack.enter_async_context(block.open_wandb_queue())
        yield QueueReader(client, block_name, block, wandb, stack)


@dataclass(eq=False)
class QueueReader:
    """Reads one queue again and again with the same clients."""

    client: PrefectClient
    block_name: str
    block: VertexLaunchQueue
    wandb: WandbQueue
    stack: contextlib.AsyncExitStack
    _services: dict[str, VertexJobs] = field(default_factory=dict[str, VertexJobs])
    _wandb_api: Any = None
    _left_the_queue: set[str] = field(default_factory=set[str])

    @property
    def queue(self) -> str:
        """The queue's address at W&B, `entity/name`."""
        return f"{self.block.entity}/{self.block.queue}"

    async def read(self, *, ended_limit: int = 20) -> QueueStatus:
        """Return the queue as it is now. Raises httpx.HTTPError when Prefect does not answer."""
        flow_runs = await self._launches(ended_limit)
        slots_taken = await self._slots_taken()
        agents = await self._agents()
        problems: list[str] = []
        jobs = await self._jobs(flow_runs, problems)
        items = [launched_status(self.block, flow_run, jobs, all_read=not problems) for flow_run in flow_runs]
        waiting = await _or_problem(self._waiting({item.item for item in items}), [], problems)
        return QueueStatus(
            block=self.block_name,
            queue=self.queue,
            project=self.block.project,
            location=self.block.location,
            max_jobs=self.block.max_jobs,
            slots_taken=slots_taken,
            agents=agents,
            items=(
                *(self._in_queue(item_id, state, slots_taken, agents) for item_id, state in waiting),
                *items,
            ),
            problems=tuple(problems),
        )

    async def _launches(self, ended_limit: int) -> list[FlowRun]:
        unended = await self._flow_runs(_UNENDED, FlowRunSort.START_TIME_DESC)
        ended = await self._flow_runs(_ENDED, FlowRunSort.END_TIME_DESC, ended_limit)
        found = {flow_run.id: flow_run for flow_run in (*ended, *unended)}
        with_item = [flow_run for flow_run in found.values() if flow_run.parameters.get("item")]
        return sorted(with_item, key=created_at, reverse=True)

    async def _flow_runs(
        self, states: Sequence[StateType], sort: FlowRunSort, most: int | None = None
    ) -> list[FlowRun]:
        tags = [PRODUCT_TAG, self.block.identity.tag]
        return await read_flow_runs(
            self.client, flow=LAUNCH_FLOW, tags=tags, states=states, sort=sort, most=most
        )

    async def _slots_taken(self) -> int | None:
        try:
            limit = await self.client.read_global_concurrency_limit_by_name(self.block.identity.limit_name)
        except ObjectNotFound:
            return None
        return limit.active_slots

    async def _agents(self) -> int:
        running = await read_flow_runs(self.client, flow=AGENT_FLOW, states=[StateType.RUNNING])
        return sum(self.block_name in flow_run.parameters.get("queues", ()) for flow_run in running)

    def _service(self, parent: str) -> VertexJobs:
        if parent not in self._services:
            match = PARENT.fullmatch(parent)
            assert match is not None, parent
            jobs = self.block.open_vertex_jobs(match["location"], match["project"])
            self.stack.push_async_callback(jobs.aclose)
            self._services[parent] = jobs
        return self._services[parent]

    def _parents(self, flow_runs: Sequence[FlowRun]) -> set[str]:
        """Return where the queue's jobs are, and those of launches that began before it was moved."""
        unended = [run for run in flow_runs if run.state is None or not run.state.is_final()]
        return set(self._own_parents()).union(*(parents_of(run.labels) for run in unended))

    def _own_parents(self) -> list[str]:
        return [f"projects/{self.block.project}/locations/{location}" for location in self.block.locations]

    async def _jobs(self, flow_runs: Sequence[FlowRun], problems: list[str]) -> dict[str, JobRecord]:
        """Return the jobs of these launches by item key; where they cannot be read is in `problems`.

        Of several jobs for one item it is that of the last attempt, and of two of them the older.
        """
        if not flow_runs:
            return {}
        since = (min(map(created_at, flow_runs)) - _CLOCK_LEEWAY).astimezone(UTC)
        selection = (
            f'labels.{QUEUE_LABEL}="{self.block.identity.key}" AND create_time>="{since:%Y-%m-%dT%H:%M:%SZ}"'
        )
        services = [self._service(parent) for parent in sorted(self._parents(flow_runs))]
        pages = await asyncio.gather(
            *(_or_problem(jobs.list(selection), tuple[JobRecord, ...](), problems) for jobs in services)
        )
        in_order = sorted(
            (job for page in pages for job in page),
            key=lambda job: (job.attempt, -(job.create_time or since).timestamp()),
        )
        labelled = {job.labels.get(ITEM_LABEL, ""): job for job in in_order}
        return labelled | await _or_problem(self._adopted_jobs(flow_runs), {}, problems)

    async def _adopted_jobs(self, flow_runs: Sequence[FlowRun]) -> dict[str, JobRecord]:
        """Return the jobs that W&B's own agent had made, which have no label of ours, by item key."""
        found: dict[str, JobRecord] = {}
        for flow_run in flow_runs:
            item = QueueItem.model_validate(flow_run.parameters["item"])
            if item.job_name is not None:
                with contextlib.suppress(NotFound):
                    match = PARENT.match(item.job_name)
                    jobs = self._service(match[0] if match else self._own_parents()[0])
                    found[self.block.identity.item_key(item.item_id)] = await jobs.get(item.job_name)
        return found

    async def _waiting(self, launched: set[str]) -> list[tuple[str, ItemState]]:
        """Return the items that are still in the queue, in W&B's order (its API lists 100 of them)."""
        self._left_the_queue |= launched
        item_ids = await self._item_ids()
        unknown = [item_id for item_id in item_ids if item_id not in self._left_the_queue]
        gate = asyncio.Semaphore(_READS_AT_ONCE)

        async def state_of(item_id: str) -> ItemState:
            async with gate:
                try:
                    return (await self.wandb.read_item(item_id)).state
                except NotFound:
                    return ItemState.UNKNOWN

        states = await asyncio.gather(*map(state_of, unknown))
        gone = {ItemState.CLAIMED, ItemState.FAILED, ItemState.UNKNOWN}
        self._left_the_queue |= {
            item_id for item_id, state in zip(unknown, states, strict=True) if state in gone
        }
        return [(item_id, state) for item_id, state in zip(unknown, states, strict=True) if state not in gone]

    async def _item_ids(self) -> list[str]:
        """Return the ids of the queue's items through wandb's public API, which alone lists them."""
        if self._wandb_api is None:
            await self.wandb.find_queue()  # says in our words what is wrong with key or queue
            self._wandb_api = await asyncio.to_thread(self.block.wandb_credentials.get_client)

        def read() -> list[str]:
            queue = self._wandb_api.run_queue(entity=self.block.entity, name=self.block.queue)
            return [item.id for item in queue.items]

        return await asyncio.to_thread(read)

    def _in_queue(self, item_id: str, state: ItemState, slots_taken: int | None, agents: int) -> ItemStatus:
        leased = state is ItemState.LEASED
        if leased:
            why = "an agent has just taken it"
        elif not agents:
            why = f"no agent serves the queue; `vertex-launch agent --queue {self.block_name}` does"
        elif slots_taken is not None and slots_taken >= self.block.max_jobs > 0:
            why = f"{slots_taken} of {self.block.max_jobs} slots are taken"
        else:
            why = "it is next for the agent"
        return ItemStatus(
            queue=self.queue,
            item=item_id,
            run="",
            state="leased" if leased else "waiting",
            why=why,
            item_state=state.value,
        )


async def _or_problem(reading: Awaitable[T], otherwise: T, problems: list[str]) -> T:
    """Return what was read; when a system does not answer, note it and show what the others know."""
    import wandb

    try:
        return await reading
    except LaunchError as error:
        problems.append(str(error))
    except (wandb.Error, ValueError) as error:
        problems.append(f"W&B: {error}")
    return otherwise
