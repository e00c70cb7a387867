"""The flow runs of `launch`: made before anything else happens to an item, found again after a crash."""

from __future__ import annotations

import asyncio
import contextvars
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import State
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext, TaskRunContext
from prefect.flow_engine import run_flow_async
from prefect.states import Pending, Scheduled, to_state_create

from flows.launch import launch
from flows.queue_item import QueueItem
from flows.tags import PRODUCT_TAG, item_tag, owner_of, owner_tag, queue_tag
from vertex_launch.clock import Clock

# A launch that crashed is started again a minute later, two, …, and left alone after the last try.
MAX_EXECUTIONS = 8
CRASH_PAUSE_SECONDS = 60.0

_MAY_BE_ORPHANED = (
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.CANCELLING,
    StateType.CRASHED,
)


class LaunchRuns:
    """The launch flow runs of one queue, as one agent sees them.

    `owner_id` is the agent's own flow run. Every method raises httpx.HTTPError when Prefect cannot
    be reached.
    """

    def __init__(
        self, client: PrefectClient, *, block_name: str, entity: str, queue: str, owner_id: UUID, clock: Clock
    ) -> None:
        self._client = client
        self._block_name = block_name
        self._queue_tag = queue_tag(entity, queue)
        self._owner_id = owner_id
        self._clock = clock
        self._flow_id: UUID | None = None

    async def create(self, item: QueueItem) -> FlowRun:
        """Return the flow run of an item, made now unless there is one: queue and item are its key."""
        flow_id = self._flow_id = self._flow_id or await self._client.create_flow_from_name(launch.name)
        wanted = FlowRunCreate(
            flow_id=flow_id,
            flow_version=launch.version,
            name=item.run_name or f"item-{item.item_id}",
            parameters={"queue": self._block_name, "item": item.model_dump(mode="json")},
            tags=[PRODUCT_TAG, self._queue_tag, item_tag(item.item_id), owner_tag(self._owner_id)],
            state=to_state_create(Pending()),
            # Item ids are numbers of one W&B server; the queue keeps two servers apart.
            idempotency_key=f"{self._queue_tag}/{item.item_id}",
        )
        body = wanted.model_dump(mode="json", exclude_unset=True)
        response = await self._client.request("POST", "/flow_runs/", json=body)
        return FlowRun.model_validate(response.json())

    async def find_orphans(self, live: set[UUID]) -> list[FlowRun]:
        """Return the unfinished launches that nobody carries, oldest first.

        `live` are the flow runs this agent carries itself. A launch whose agent still runs is that
        agent's, and one that a worker started by itself has no agent.
        """
        flow_runs = await self._read_unfinished()
        candidates = [
            run for run in flow_runs if run.id not in live and owner_of(run.tags) and self._may_start(run)
        ]
        owners = {owner for run in candidates if (owner := owner_of(run.tags)) not in {None, self._owner_id}}
        alive = await self._still_running(owners)
        return [run for run in candidates if owner_of(run.tags) not in alive]

    async def take_over(self, flow_run: FlowRun) -> FlowRun:
        """Make this agent the owner of an orphan and ready it to run again under its own id."""
        tags = [tag for tag in flow_run.tags if not tag.startswith("agent:")]
        # Dying between these two lines leaves an orphan of ours, found again like any other.
        await self._client.update_flow_run(flow_run.id, tags=[*tags, owner_tag(self._owner_id)])
        await self._client.set_flow_run_state(
            flow_run.id,
            Scheduled(name="AwaitingAdoption", message="Its agent is gone; going on."),
            force=True,
        )
        return await self._client.read_flow_run(flow_run.id)

    async def hand_over(self, flow_run_id: UUID) -> None:
        """Leave a launch whose job is still under way to the next agent."""
        await self._client.set_flow_run_state(
            flow_run_id,
            Scheduled(
                name="AwaitingAdoption", message="Its agent stopped; the next one goes on. The job runs on."
            ),
            force=True,
        )

    def start(self, flow_run: FlowRun) -> asyncio.Task[State[Any]]:
        """Run a launch in this event loop, as a flow run of its own and not as the agent's subflow."""
        context = contextvars.copy_context()
        context.run(_leave_parent_run)
        return asyncio.create_task(_run(flow_run), name=f"launch {flow_run.name}", context=context)

    async def _read_unfinished(self) -> list[FlowRun]:
        found: list[FlowRun] = []
        while True:
            page = await self._client.read_flow_runs(
                flow_filter=FlowFilter.model_validate({"name": {"any_": [launch.name]}}),
                flow_run_filter=FlowRunFilter.model_validate(
                    {
                        "tags": {"all_": [PRODUCT_TAG, self._queue_tag]},
                        "state": {"type": {"any_": list(_MAY_BE_ORPHANED)}},
                    }
                ),
                limit=200,
                offset=len(found),
            )
            found += page
            if len(page) < 200:
                return sorted(found, key=lambda run: str(run.created))

    async def _still_running(self, owners: set[UUID | None]) -> set[UUID | None]:
        ids = [owner for owner in owners if owner is not None]
        if not ids:
            return set()
        runs = await self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": ids}})
        )
        return {run.id for run in runs if run.state is not None and not run.state.is_final()}

    def _may_start(self, flow_run: FlowRun) -> bool:
        if flow_run.state is None or not flow_run.state.is_crashed():
            return True
        if flow_run.run_count >= MAX_EXECUTIONS:
            return False
        pause = timedelta(seconds=CRASH_PAUSE_SECONDS * max(0, flow_run.run_count - 1))
        return flow_run.state.timestamp + pause <= self._clock.now()


async def _run(flow_run: FlowRun) -> State[Any]:
    state = await run_flow_async(
        launch, flow_run=flow_run, parameters=flow_run.parameters, return_type="state"
    )
    assert isinstance(state, State)
    return state


def _leave_parent_run() -> None:
    FlowRunContext.__var__.set(None)  # pyright: ignore[reportArgumentType]
    TaskRunContext.__var__.set(None)  # pyright: ignore[reportArgumentType]
