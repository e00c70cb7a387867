"""The flow runs of `launch`: made before anything else happens to an item, found again after a crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect import State
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Pending, Running, to_state_create

from prefect_vertex_launch.coordination import launch_record
from prefect_vertex_launch.coordination.asking_once import asking_once
from prefect_vertex_launch.coordination.heartbeat import AgentObserver
from prefect_vertex_launch.coordination.launch_record import (
    ADOPTED_TAG,
    PRODUCT_TAG,
    has_slot_under,
    item_of,
    launch_tags,
    owner_of,
    owner_tag,
    parents_labels,
    parents_of,
)
from prefect_vertex_launch.coordination.prefect_api import LAUNCH_FLOW, read_flow_runs, read_flow_runs_by_id
from prefect_vertex_launch.coordination.slots import LEASE_SECONDS
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.errors import Permanent, Problem
from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.core.shared_limit import SHARED_LIMIT_PREFIX
from prefect_vertex_launch.wandb.queue import RunPath

# The state of a launch whose item somebody else has; it is no outcome of the launch.
ELSEWHERE = "Elsewhere"
# A launch that crashed again and again is started again a minute later, then two, for as long as it takes:
# its job may run on, and its slot must not end before.
CRASH_PAUSE_SECONDS = 60.0
# Who writes its name on a launch has it if the name still stands there so much later; nobody may do so who
# has looked at the launch before that.
CONFIRM_SECONDS = 2.0
# What was read longer ago than this is read again before it is acted on.
FRESH_SECONDS = 2.0
MAX_CRASH_PAUSE_SECONDS = 120.0
MAX_QUOTED_CHARACTERS = 500

_MAY_BE_ORPHANED = (
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.CANCELLING,
    StateType.CRASHED,
)


class NotKept(Permanent):
    """Prefect does not keep what the flow run of an item is to hold."""


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What the flow run of one item is made of.

    `title` is its name, `run` the W&B run that the item becomes, if it can become one, and `parameter` the
    item as the flow takes it.
    """

    item_id: str
    title: str
    run: RunPath | None
    parameter: Mapping[str, Any]


class LaunchStore:
    """The launch flow runs of one queue, as one agent sees them.

    `owner_id` is the agent's own flow run. Every method raises httpx.HTTPError when Prefect cannot
    be reached.
    """

    def __init__(
        self,
        client: PrefectClient,
        *,
        block_name: str,
        queue: QueueIdentity,
        owner_id: UUID,
        clock: Clock,
    ) -> None:
        self._client = client
        self._block_name = block_name
        self._queue = queue
        self._tags = [PRODUCT_TAG, queue.tag]
        self._owner_id = owner_id
        self._clock = clock
        self._flow_id: UUID | None = None
        self._looked = clock.monotonic()
        # Which crash of a launch this agent has seen, by its state, and since when.
        self._crashed_since: dict[UUID, tuple[UUID, float]] = {}
        self._agents = AgentObserver(client, clock=clock)
        # The launches of other agents at the last look for orphans, and those not to be started again yet.
        self.others: list[FlowRun] = []

    async def create(
        self, request: LaunchRequest, parents: frozenset[str], slot_labels: Mapping[str, str]
    ) -> FlowRun | None:
        """Return the flow run of an item, owned by this agent; None when another agent has it.

        `parents` are where its jobs may be, `slot_labels` the labels of its slot. The next agent needs both
        to find them.

        Queue and item are its key: an item that comes a second time, after its lease had ended, goes on
        in the flow run it has. Raises NotKept for a request that Prefect refuses.
        """
        labels = {**slot_labels, **parents_labels(parents)}
        looked = self._clock.monotonic()
        response = await self._post(request, labels=labels)
        if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            raise NotKept(_not_kept(request, response))
        response.raise_for_status()
        flow_run = FlowRun.model_validate(response.json())
        if response.status_code == httpx.codes.CREATED:
            return flow_run
        if _is_settled(flow_run):
            return None
        # One that has ended has no owner: W&B had the item back before it was claimed.
        has_ended = flow_run.state is not None and flow_run.state.is_final()
        owner = None if has_ended else owner_of(flow_run.tags)
        if owner is not None and owner != self._owner_id and await self._agents.at_work({owner}):
            return None
        if not await self._is_unchanged(flow_run, looked) or not await self._take_over(flow_run):
            return None
        # Only now: they are another agent's if that one was quicker.
        both = parents_labels(parents | parents_of(flow_run.labels))
        await self._client.update_flow_run_labels(flow_run.id, {**slot_labels, **both})
        return await self._ready(await self._client.read_flow_run(flow_run.id))

    async def offer(self, request: LaunchRequest) -> FlowRun | None:
        """Make the flow run of a job that runs already, for the next agent to adopt; None if it has one.

        `owner_id` is then no agent's: nobody carries the launch.
        """
        offered = Pending(name="AwaitingAdoption", message="W&B's agent left the job; the next one goes on.")
        response = await self._post(request, state=offered)
        response.raise_for_status()
        is_new = response.status_code == httpx.codes.CREATED
        return FlowRun.model_validate(response.json()) if is_new else None

    async def _post(
        self,
        request: LaunchRequest,
        *,
        state: State[Any] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        self._flow_id = self._flow_id or await self._client.create_flow_from_name(LAUNCH_FLOW)
        tags = launch_tags(self._queue, request.item_id, request.run)
        wanted = FlowRunCreate(
            flow_id=self._flow_id,
            name=request.title,
            parameters={"queue": self._block_name, "item": dict(request.parameter)},
            tags=[*tags, owner_tag(self._owner_id)],
            state=to_state_create(state or Pending()),
            labels=dict(labels or {}),
            idempotency_key=f"vertex-launch:{self._queue.item_key(request.item_id)}",
        )
        body = wanted.model_dump(mode="json", exclude_unset=True)
        try:
            return await self._client.request("POST", "/flow_runs/", json=body)
        except httpx.HTTPStatusError as error:
            return error.response

    async def find_orphans(self, live: set[UUID]) -> list[FlowRun]:
        """Return the unfinished launches that nobody carries, oldest first.

        `live` are the flow runs this agent carries itself. A launch whose agent still runs is that
        agent's; one that a worker started by itself has no agent, and is nobody's once it has crashed.
        """
        self._looked = self._clock.monotonic()
        flow_runs = await self._read(self._tags, _MAY_BE_ORPHANED)
        candidates = [run for run in flow_runs if run.id not in live and self._may_be_orphan(run)]
        owners = {owner for run in candidates if (owner := owner_of(run.tags)) is not None}
        alive = await self._agents.at_work(owners - {self._owner_id})
        self.others = [run for run in candidates if owner_of(run.tags) in alive or not self._may_start(run)]
        others = {run.id for run in self.others}
        return [run for run in candidates if run.id not in others]

    async def record_parents(self, flow_run: FlowRun, parents: frozenset[str]) -> None:
        """Record where else a launch's jobs may be from now on."""
        if not parents <= (recorded := parents_of(flow_run.labels)):
            labels = parents_labels(recorded | parents)
            await self._client.update_flow_run_labels(flow_run.id, {**labels})

    async def _take_over(self, flow_run: FlowRun) -> bool:
        """Make this agent the owner of a launch; return whether it is, as others may adopt it or end it."""
        await self._own(flow_run)
        await self._clock.sleep(CONFIRM_SECONDS)
        run = await self._client.read_flow_run(flow_run.id)
        return self.is_own(run) and not _is_settled(run)

    async def adopt(self, orphans: Sequence[FlowRun]) -> list[FlowRun]:
        """Make this agent the owner of orphans and ready them to run again; return those it has got.

        Two agents may want the same ones: each writes its name, and a moment later has those that still
        bear it. One that another agent has got since they were looked for is left to it.
        """
        wanted: list[FlowRun] = []
        for orphan in orphans:
            # Each by itself: while one is marked others may be taken.
            if await self._is_unchanged(orphan, self._looked):
                # Dying after this line leaves an orphan of ours, found again like any other.
                await self._own(orphan)
                wanted.append(orphan)
        if wanted:
            await self._clock.sleep(CONFIRM_SECONDS)
        runs = await read_flow_runs_by_id(self._client, {orphan.id for orphan in wanted})
        own = {run.id: run for run in runs if owner_of(run.tags) == self._owner_id and not _is_settled(run)}
        return [await self._ready(own[orphan.id]) for orphan in wanted if orphan.id in own]

    async def _is_unchanged(self, found: FlowRun, looked: float) -> bool:
        """Whether nobody has taken a launch since it was found; no if that cannot be known quickly.

        `looked` is when it was asked for, in seconds of the monotonic clock.
        """
        if self._clock.monotonic() - looked <= CONFIRM_SECONDS:
            return True
        looked = self._clock.monotonic()
        run = await self._client.read_flow_run(found.id)
        is_fresh = self._clock.monotonic() - looked <= CONFIRM_SECONDS
        return is_fresh and owner_of(run.tags) == owner_of(found.tags) and not _is_settled(run)

    async def read(self, flow_run_ids: set[UUID]) -> list[FlowRun]:
        """Return the flow runs of launches, as far as they exist."""
        return await read_flow_runs_by_id(self._client, flow_run_ids)

    def is_own(self, run: FlowRun) -> bool:
        """Whether a launch is this agent's."""
        return owner_of(run.tags) == self._owner_id

    async def has_gone_on(self, flow_run_id: UUID) -> bool:
        """Whether a launch that was this agent's is another's by now, or has ended."""
        runs = await self.read({flow_run_id})
        return not any(self.is_own(run) and not (run.state and run.state.is_final()) for run in runs)

    async def is_over(self, flow_run_id: UUID) -> bool:
        """Whether a launch has an outcome, or is gone."""
        return all(_is_settled(run) for run in await self.read({flow_run_id}))

    async def taken(self, flow_run_ids: set[UUID]) -> set[UUID]:
        """Return those of this agent's launches that another agent has taken over."""
        return {run.id for run in await self.read(flow_run_ids) if not self.is_own(run)}

    async def with_slot(self, limit_name: str, label: str) -> set[UUID]:
        """Return which launches under way have a slot under a limit, as their label says.

        Whoever carries them; under a shared limit they are those of all queues.
        """
        is_shared = limit_name.startswith(SHARED_LIMIT_PREFIX)
        runs = await self._read(
            [PRODUCT_TAG] if is_shared else self._tags, (*_MAY_BE_ORPHANED, StateType.PAUSED)
        )
        return {
            run.id
            for run in runs
            if has_slot_under(run.labels, label, limit_name) and not self._is_long_dead(run)
        }

    def _is_long_dead(self, run: FlowRun) -> bool:
        """Whether a launch crashed and nobody went on with it for longer than its lease can have lasted."""
        if run.state is None or not run.state.is_crashed():
            return False
        return self._crashed_seconds(run) >= 2 * LEASE_SECONDS

    def _crashed_seconds(self, run: FlowRun) -> float:
        """Return how long this agent has seen a crash; the time in its state is of another clock."""
        assert run.state is not None
        now = self._clock.monotonic()
        state_id, since = self._crashed_since.get(run.id, (run.state.id, now))
        if state_id != run.state.id:
            since = now
        self._crashed_since[run.id] = run.state.id, since
        return now - since

    async def _own(self, flow_run: FlowRun) -> None:
        tags = [tag for tag in flow_run.tags if not tag.startswith("agent:")]
        tags += [ADOPTED_TAG, owner_tag(self._owner_id)]
        with asking_once():  # by the time it is asked again the launch may be another agent's
            await self._client.update_flow_run(flow_run.id, tags=list(dict.fromkeys(tags)))

    async def _ready(self, flow_run: FlowRun) -> FlowRun:
        if flow_run.state is not None and (flow_run.state.is_running() or flow_run.state.is_pending()):
            # It goes on from there. Were its state replaced, a cancel of this moment would go with it.
            return await self._client.read_flow_run(flow_run.id)
        if await self._is_to_end(flow_run):
            # The state goes with the next line, and what somebody wants must outlive this process.
            await self._client.update_flow_run_labels(
                flow_run.id, {**launch_record.flag(launch_record.CANCELLED)}
            )
        with asking_once():  # it may have ended by then
            # Not Scheduled: a worker would start a launch that has a deployment a second time.
            await self._client.set_flow_run_state(
                flow_run.id, Pending(message="Its agent is gone; going on."), force=True
            )
        return await self._client.read_flow_run(flow_run.id)

    async def _is_to_end(self, flow_run: FlowRun) -> bool:
        """Whether somebody has cancelled a launch.

        Be it before it ended because its item was not ours, or before the end of its process made it a
        crash: Prefect's engine writes that over everything.
        """
        state = flow_run.state
        if state is None or not (state.name == ELSEWHERE or state.is_crashed()):
            return state is not None and state.is_cancelling()
        states = await self._client.read_flow_run_states(flow_run.id)
        return any(state.is_cancelling() for state in states)

    async def hand_over(self, flow_run_id: UUID, labels: Mapping[str, str]) -> None:
        """Leave a launch whose job is still under way to the next agent; a cancelled one as it is.

        `labels` are what that one has to know.
        It is called Running, as Prefect lets no other state follow unforced, and one that is forced
        would undo a cancel of this moment.
        """
        if labels:
            await self._client.update_flow_run_labels(flow_run_id, {**labels})
        await self._client.set_flow_run_state(
            flow_run_id,
            Running(
                name="AwaitingAdoption", message="Its agent stopped; the next one goes on. No job is touched."
            ),
        )

    async def _read(self, tags: Sequence[str], states: Sequence[StateType]) -> list[FlowRun]:
        """Return the launches with all of these tags in one of these states, oldest first."""
        found = await read_flow_runs(self._client, flow=LAUNCH_FLOW, tags=tags, states=states)
        return sorted(found, key=lambda run: str(run.created))

    def _may_be_orphan(self, flow_run: FlowRun) -> bool:
        is_crashed = flow_run.state is not None and flow_run.state.is_crashed()
        return owner_of(flow_run.tags) is not None or (is_crashed and item_of(flow_run.tags) is not None)

    def _may_start(self, flow_run: FlowRun) -> bool:
        if flow_run.state is None or not flow_run.state.is_crashed():
            return True
        if owner_of(flow_run.tags) not in {None, self._owner_id}:
            return True  # its agent has ended, and it with it
        pause_seconds = min(MAX_CRASH_PAUSE_SECONDS, CRASH_PAUSE_SECONDS * max(0, flow_run.run_count - 1))
        return self._crashed_seconds(flow_run) >= pause_seconds


def _is_settled(flow_run: FlowRun) -> bool:
    """Whether a launch has an outcome; that of an item which somebody else has is none of its own."""
    state = flow_run.state
    return state is not None and state.is_final() and not state.is_crashed() and state.name != ELSEWHERE


def _not_kept(request: LaunchRequest, response: httpx.Response) -> Problem:
    return Problem(
        where=f"item {request.item_id}",
        what=f"Prefect does not keep its run spec: {response.text[:MAX_QUOTED_CHARACTERS]}",
        why="the run spec is a parameter of the launch's flow run, so that the launch can go on later",
        fix="Put large inputs into a W&B artifact or a bucket and pass their names.",
    )
