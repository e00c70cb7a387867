"""Where every run of a queue is, and why: read from Prefect, W&B and Vertex AI.

Nothing is kept here and nothing is written: the launches are found by their tags, the jobs by their
labels, and what still waits by the queue itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.cli.errors import no_such_block, prefect_unreachable
from prefect_vertex_launch.coordination.tags import PRODUCT_TAG, queue_tag
from prefect_vertex_launch.coordination.whereabouts import whereabouts_of
from prefect_vertex_launch.core.diagnosis import console_url, diagnose, logs_url
from prefect_vertex_launch.core.errors import LaunchError, NotFound
from prefect_vertex_launch.core.labels import ITEM_LABEL, QUEUE_LABEL, launch_key, queue_key
from prefect_vertex_launch.core.states import ItemState, JobRecord, LaunchState
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.outcome import run_url, summary_of
from prefect_vertex_launch.launch.regions import PARENT
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import WandbQueue

T = TypeVar("T")

_PAGE = 200  # Prefect's own limit for one answer
_READS_AT_ONCE = 10
# The clocks of Prefect and Google need not agree to the second.
_CLOCK_LEEWAY = timedelta(minutes=5)
_ENDED = [StateType.COMPLETED.value, StateType.FAILED.value, StateType.CANCELLED.value]
# A crashed launch is not ended: its job may run on, and the next agent takes it over.
_UNENDED = [kind.value for kind in StateType if kind.value not in _ENDED]
_WHY = {
    LaunchState.SUBMITTED: "Vertex AI has the job",
    LaunchState.QUEUED: "Vertex AI holds the job in its own queue: no capacity or quota yet",
    LaunchState.PENDING: "Vertex AI prepares the machines",
    LaunchState.RUNNING: "the job runs",
    LaunchState.PAUSED: "Vertex AI paused the job",
    LaunchState.CANCELLING: "the job is being cancelled",
}


@dataclass(frozen=True, slots=True)
class ItemStatus:
    """One run queue item, as the three systems see it.

    `state` is one word for all of them: `waiting` and `leased` in the queue, a state of
    `LaunchState` from then on, or the name of its flow run's final state. `age_seconds` counts from
    the moment it left the queue; W&B does not say when an item was pushed.
    """

    queue: str
    item: str
    run: str
    state: str
    why: str
    created: str | None = None
    age_seconds: float | None = None
    run_id: str | None = None
    job: str | None = None
    item_state: str | None = None
    job_state: str | None = None
    prefect_state: str | None = None
    wandb_url: str | None = None
    vertex_url: str | None = None
    logs_url: str | None = None
    prefect_url: str | None = None


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
async def open_prefect() -> AsyncIterator[PrefectClient]:
    """Yield a client of the configured Prefect API. Raises CommandError when it does not answer."""
    try:
        async with get_client() as client:
            if error := await client.api_healthcheck():
                raise prefect_unreachable(error)
            yield client
    except RuntimeError as error:
        if isinstance(error.__cause__, httpx.TransportError):
            raise prefect_unreachable(error.__cause__) from error
        raise


async def block_names(client: PrefectClient) -> list[str]:
    """Return the names of all VertexLaunchQueue blocks."""
    try:
        documents = await client.read_block_documents_by_type(
            VertexLaunchQueue.get_block_type_slug(), include_secrets=False
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        return []  # the block type itself is not registered yet
    return sorted(document.name for document in documents if document.name)


async def require_block(client: PrefectClient, name: str) -> None:
    """Raise CommandError, naming the blocks there are, unless this one exists."""
    existing = await block_names(client)
    if name not in existing:
        raise no_such_block(name, existing)


@contextlib.asynccontextmanager
async def open_queue(client: PrefectClient, block_name: str) -> AsyncIterator[QueueReader]:
    """Yield a reader of one queue. Raises LaunchError or ValidationError when the block is unusable."""
    block = await VertexLaunchQueue.aload(block_name)
    async with contextlib.AsyncExitStack() as stack:
        wandb = await stack.enter_async_context(block.open_wandb_queue())
        yield QueueReader(client, block_name, block, wandb, stack)


async def read_status(
    client: PrefectClient, block_name: str | None = None, *, ended_limit: int = 20
) -> list[QueueStatus]:
    """Return the queue of this block, or of every block there is.

    `ended_limit` bounds the launches that have ended, for each queue. Raises CommandError when the
    block does not exist; a queue that cannot be read says so in its `problems`.
    """
    if block_name is not None:
        await require_block(client, block_name)
    names = [block_name] if block_name is not None else await block_names(client)
    return [await _read_queue(client, name, ended_limit) for name in names]


async def _read_queue(client: PrefectClient, name: str, ended_limit: int) -> QueueStatus:
    try:
        async with open_queue(client, name) as reader:
            return await reader.read(ended_limit=ended_limit)
    except (LaunchError, ValidationError) as error:
        return QueueStatus(name, "?", "?", "?", 0, None, 0, (), (f"block {name}: {error}",))


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
        items = [_launched(self.block, flow_run, jobs, all_read=not problems) for flow_run in flow_runs]
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
        unended = await self._flow_runs(_UNENDED, FlowRunSort.START_TIME_DESC, None)
        ended = await self._flow_runs(_ENDED, FlowRunSort.END_TIME_DESC, ended_limit)
        found = {flow_run.id: flow_run for flow_run in (*ended, *unended)}
        with_item = [flow_run for flow_run in found.values() if flow_run.parameters.get("item")]
        return sorted(with_item, key=_created, reverse=True)

    async def _flow_runs(self, states: list[str], sort: FlowRunSort, limit: int | None) -> list[FlowRun]:
        tags = [PRODUCT_TAG, queue_tag(self.block.entity, self.block.queue)]
        found: list[FlowRun] = []
        while limit is None or len(found) < limit:
            page = await self.client.read_flow_runs(
                flow_filter=FlowFilter.model_validate({"name": {"any_": ["launch"]}}),
                flow_run_filter=FlowRunFilter.model_validate(
                    {"tags": {"all_": tags}, "state": {"type": {"any_": states}}}
                ),
                sort=sort,
                limit=_PAGE if limit is None else min(_PAGE, limit - len(found)),
                offset=len(found),
            )
            found += page
            if len(page) < _PAGE:
                break
        return found

    async def _slots_taken(self) -> int | None:
        try:
            limit = await self.client.read_global_concurrency_limit_by_name(self.block.limit_name)
        except ObjectNotFound:
            return None
        return limit.active_slots

    async def _agents(self) -> int:
        running = await self.client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": ["agent"]}}),
            flow_run_filter=FlowRunFilter.model_validate(
                {"state": {"type": {"any_": [StateType.RUNNING.value]}}}
            ),
        )
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
        return set(self._own_parents()).union(*(whereabouts_of(run.labels) for run in unended))

    def _own_parents(self) -> list[str]:
        return [f"projects/{self.block.project}/locations/{location}" for location in self.block.locations]

    async def _jobs(self, flow_runs: Sequence[FlowRun], problems: list[str]) -> dict[str, JobRecord]:
        """Return the jobs of these launches by launch key; where they cannot be read is in `problems`.

        Of several jobs for one item it is that of the last attempt, and of two of them the older.
        """
        if not flow_runs:
            return {}
        since = (min(map(_created, flow_runs)) - _CLOCK_LEEWAY).astimezone(UTC)
        selection = (
            f'labels.{QUEUE_LABEL}="{queue_key(self.block.entity, self.block.queue)}"'
            f' AND create_time>="{since:%Y-%m-%dT%H:%M:%SZ}"'
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
        """Return the jobs that W&B's own agent had made, which have no label of ours, by launch key."""
        found: dict[str, JobRecord] = {}
        for flow_run in flow_runs:
            item = QueueItem.model_validate(flow_run.parameters["item"])
            if item.job_name is not None:
                with contextlib.suppress(NotFound):
                    match = PARENT.match(item.job_name)
                    jobs = self._service(match[0] if match else self._own_parents()[0])
                    found[launch_key(item.item_id)] = await jobs.get(item.job_name)
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


def _launched(
    block: VertexLaunchQueue, flow_run: FlowRun, jobs: dict[str, JobRecord], *, all_read: bool
) -> ItemStatus:
    item = QueueItem.model_validate(flow_run.parameters["item"])
    job = jobs.get(launch_key(item.item_id))
    run = item.run
    created = _created(flow_run)
    return ItemStatus(
        queue=f"{block.entity}/{block.queue}",
        item=item.item_id,
        run=flow_run.name,
        state=_state(flow_run, job),
        why=_why(flow_run, job, all_read=all_read),
        created=created.isoformat(timespec="seconds"),
        age_seconds=round((datetime.now(UTC) - created).total_seconds(), 1),
        run_id=run.run_id if run else None,
        job=job.job_id if job else None,
        job_state=job.launch_state.value if job else None,
        prefect_state=flow_run.state.name if flow_run.state is not None else None,
        wandb_url=run_url(block.wandb_credentials.base_url, run) if run and job else None,
        vertex_url=console_url(job.name) if job else None,
        logs_url=logs_url(job.name) if job else None,
        prefect_url=url_for(flow_run),
    )


def _state(flow_run: FlowRun, job: JobRecord | None) -> str:
    if job is not None:
        return job.launch_state.value
    state = flow_run.state
    if state is None or not state.is_final():
        return LaunchState.CLAIMED.value
    return (state.name or state.type.value).lower()


def _why(flow_run: FlowRun, job: JobRecord | None, *, all_read: bool) -> str:
    state = flow_run.state
    first_line = summary_of(state.message or "") if state is not None else ""
    if state is not None and state.is_crashed():
        return f"its agent crashed; the next one goes on ({first_line})"
    if state is not None and state.name == "Refused":
        return _all_problems(state.message or "")
    if state is not None and (state.is_final() or (state.name or "").startswith("WaitingFor")):
        return first_line
    if job is not None:
        return _why_of_job(job)
    return "its job is being submitted" if all_read else "its job, if there is one, could not be read"


def _why_of_job(job: JobRecord) -> str:
    if job.launch_state is LaunchState.CANCELLED:
        return "the job is cancelled; who wanted that is being found out"
    return diagnose(job).summary if job.is_terminal else _WHY[job.launch_state]


def _all_problems(message: str) -> str:
    """Return a refusal in one line; of several problems, their number and the first."""
    first, *others = message.splitlines() or [""]
    return f"{first} {others[0].strip()}" if others else first


def _created(flow_run: FlowRun) -> datetime:
    return flow_run.created or datetime.now(UTC)
