"""The agent: takes run queue items under the concurrency limit and supervises their launches.

Every launch is a flow run of its own in this event loop, so thousands of waiting items cost one
process. The agent keeps nothing that cannot be found again in W&B, Prefect and Vertex AI: when it
stops or dies the jobs run on, and the next agent carries their launches on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import httpx
from prefect import State, flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed

from flows.launch_runs import LaunchRuns
from flows.queue_item import QueueItem
from flows.session import LaunchSession, LiveLaunch, in_background, open_session, own_flow_run_id
from flows.slots import Slot, Slots
from vertex_launch.clock import sleep_until
from vertex_launch.errors import LaunchError
from vertex_launch.lifecycle import StopRequest
from vertex_launch.wandb_queue import AgentRecord, AgentStatus, PoppedItem

logger = logging.getLogger("prefect.vertex_launch.agent")

HEARTBEAT_SECONDS = 15.0
ADOPTION_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 60.0

DRAINED = "the queue is drained"
MAX_RUNTIME = "its time is over"
STOPPED_BY_WANDB = "W&B asked it to stop polling"
CANCELLED_IN_PREFECT = "its flow run was cancelled in Prefect"


@flow(name="agent", flow_run_name="agent {queue}", persist_result=False, log_prints=False)
async def agent(queue: str, drain: bool = False, max_runtime_minutes: float | None = 60) -> State[Any]:
    """Launch the runs of a W&B queue on Vertex AI.

    Args:
        queue: Name of the VertexLaunchQueue block.
        drain: End when the queue is empty and every launch has ended.
        max_runtime_minutes: End after this time and leave what is under way to the next agent;
            empty for no end.
    """
    # For each flow run that sends heartbeats Prefect keeps a thread, and here may be a thousand launches:
    # the agent's own heartbeat speaks for them all.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        async with open_session(queue) as session, get_client() as client:
            supervisor = Supervisor(session, client, drain=drain, max_runtime_minutes=max_runtime_minutes)
            reason = await supervisor.run()
    message = f"Ended because {reason}. {supervisor.tally}"
    if reason == CANCELLED_IN_PREFECT:
        return Cancelled(message=message)
    return Completed(message=message)


class Found(Enum):
    """What one look for work has found."""

    ITEM = auto()
    EMPTY_QUEUE = auto()
    NO_SLOT = auto()
    NOTHING_KNOWN = auto()


@dataclass(slots=True)
class Tally:
    """What one agent did."""

    launched: int = 0
    adopted: int = 0
    handed_over: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.ends.items())) or "none ended"
        return f"{self.launched} launched, {self.adopted} adopted, {self.handed_over} handed over; {ends}."


class Supervisor:
    """One agent's work: observe, take, start, see through.

    Raises AuthenticationFailed, PermissionDenied or NotFound from `run` when W&B does not accept
    the key or has no such queue. Whatever goes wrong with one item stays with that item.
    """

    def __init__(
        self,
        session: LaunchSession,
        client: PrefectClient,
        *,
        drain: bool = False,
        max_runtime_minutes: float | None = None,
    ) -> None:
        block = session.block
        self.tally = Tally()
        self._session = session
        self._client = client
        self._drain = drain
        self._clock = session.clock
        self._flow_run_id = own_flow_run_id()
        self._runs = LaunchRuns(
            client,
            block_name=session.block_name,
            entity=block.entity,
            queue=block.queue,
            owner_id=self._flow_run_id,
            clock=self._clock,
        )
        self._slots = Slots(
            client, block.limit_name, block.max_jobs, clock=self._clock, holder_id=self._flow_run_id
        )
        self._deadline = (
            None if max_runtime_minutes is None else self._clock.monotonic() + max_runtime_minutes * 60
        )
        self._carried: dict[str, asyncio.Task[None]] = {}
        # An item whose flow run could not be made: it is ours until its lease ends.
        self._held: PoppedItem | None = None
        # Asked for while an item is being started: in a burst the next one need not wait for it.
        self._next_slot: asyncio.Task[Slot | None] | None = None
        # A flow run that is just being made must not look like one that nobody carries.
        self._booking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stop_reason: str | None = None
        self._registration: AgentRecord | None = None

    async def run(self) -> str:
        """Serve the queue until there is a reason to end, and return that reason."""
        await self._slots.ensure_limit()
        self._registration = await self._session.wandb.register(self._agent_config())
        logger.info(
            "Agent %s serves %s/%s", self._registration.name, self._session.block.entity,
            self._session.block.queue,
        )  # fmt: skip
        try:
            async with (
                in_background(self._slots.keep_renewed, "slot renewal", self._clock),
                in_background(self._keep_in_touch, "heartbeat", self._clock),
            ):
                try:
                    await self._adopt_before_serving()
                    async with in_background(self._keep_adopting, "adoption", self._clock):
                        reason = await self._serve()
                finally:
                    await self._hand_over()
        finally:
            await self._say(AgentStatus.KILLED)
        logger.info("Agent ends because %s. %s", reason, self.tally)
        return reason

    def _agent_config(self) -> dict[str, Any]:
        block = self._session.block
        return {
            "entity": block.entity,
            "queues": [block.queue],
            "max_jobs": block.max_jobs,
            "environment": {"type": "gcp", "region": block.location},
        }

    async def _serve(self) -> str:
        failures = 0
        while True:
            if reason := self._reason_to_end():
                return reason
            found = Found.NOTHING_KNOWN
            try:
                found = await self._start_next()
                failures = 0
            except (LaunchError, httpx.HTTPError) as error:
                failures += 1
                logger.warning("Nothing could be taken from the queue: %s", error)
            if found is Found.ITEM:
                continue
            if self._drain and found is Found.EMPTY_QUEUE and not self._carried and not self._slots.owed:
                return DRAINED
            await self._rest(failures)

    def _reason_to_end(self) -> str | None:
        if self._deadline is not None and self._clock.monotonic() >= self._deadline:
            return MAX_RUNTIME
        return self._stop_reason

    async def _start_next(self) -> Found:
        """Take a slot and then an item, and start its launch."""
        if not await self._slots.settle():
            await self._release_next_slot()
            return Found.NO_SLOT
        slot = await self._take_slot()
        if slot is None:
            return Found.NO_SLOT
        is_started = False
        try:
            popped = self._held or await self._pop()
            if popped is None:
                return Found.EMPTY_QUEUE
            self._held = popped
            self._session.calm.clear()
            self._next_slot = asyncio.create_task(self._slots.try_take())
            is_started = await self._begin(popped, slot)
            self._held = None
            return Found.ITEM
        finally:
            if not is_started:
                await self._slots.release(slot)

    async def _take_slot(self) -> Slot | None:
        """Return the slot that was asked for while the last item was started, else ask now."""
        asked, self._next_slot = self._next_slot, None
        return await (asked or self._slots.try_take())

    async def _release_next_slot(self) -> None:
        if self._next_slot is not None and (slot := await self._take_slot()) is not None:
            await self._slots.release(slot)

    async def _pop(self) -> PoppedItem | None:
        assert self._registration is not None
        # Dying after this line costs the item its lease, a minute, and nothing else.
        return await self._session.wandb.pop(self._registration.agent_id)

    async def _begin(self, popped: PoppedItem, slot: Slot) -> bool:
        """Start the launch of an item; False when another agent carries it."""
        item = QueueItem.from_popped(popped)
        async with self._booking:
            flow_run = await self._runs.create(item)
            if flow_run is None:
                return False
            self.tally.launched += 1
            self._carry(flow_run, item, slot, LiveLaunch(item, flow_run.id, api_key=popped.api_key))
        return True

    def _carry(self, flow_run: FlowRun, item: QueueItem, slot: Slot, live: LiveLaunch) -> None:
        self._session.live[item.item_id] = live
        self._carried[item.item_id] = asyncio.create_task(self._see_through(flow_run, live, slot))

    async def _see_through(self, flow_run: FlowRun, live: LiveLaunch, slot: Slot) -> None:
        """Follow one launch to its end; give its slot back when the job has ended."""
        launch_task = self._runs.start(flow_run)
        job_ended = asyncio.create_task(live.job_ended.wait())
        try:
            await asyncio.wait({launch_task, job_ended}, return_when=asyncio.FIRST_COMPLETED)
            await self._slots.release(slot)
            self._wake.set()
            state = await launch_task
            self.tally.ends[(state.name or state.type.value).lower()] += 1
        except Abort:
            self.tally.handed_over += 1
            await self._leave(flow_run)
        except Exception:
            # Its flow run is not in a final state: the next adoption pass starts it again.
            logger.exception("The launch of item %s was interrupted", live.item.item_id)
        finally:
            job_ended.cancel()
            self._session.live.pop(live.item.item_id, None)
            self._carried.pop(live.item.item_id, None)
            self._wake.set()

    async def _leave(self, flow_run: FlowRun) -> None:
        """Mark a launch as one to adopt. Left unmarked it is found too, once this agent's run has ended."""
        try:
            await self._runs.hand_over(flow_run.id)
        except httpx.HTTPError as error:
            logger.warning("The launch %s could not be marked for adoption: %s", flow_run.name, error)

    async def _adopt_before_serving(self) -> None:
        """Adopt what another agent left, before anything new is started under the same limit."""
        while not self._reason_to_end() and not await self._try_to_adopt():
            await self._clock.sleep(self._session.block.poll_seconds)

    async def _keep_adopting(self) -> None:
        while True:
            await self._clock.sleep(ADOPTION_SECONDS)
            await self._try_to_adopt()

    async def _try_to_adopt(self) -> bool:
        try:
            async with self._booking:
                await self._adopt()
        except httpx.HTTPError as error:
            logger.warning("Prefect could not be asked for unfinished launches: %s", error)
            return False
        return True

    async def _adopt(self) -> None:
        carried = {live.flow_run_id for live in self._session.live.values()}
        for orphan in await self._runs.find_orphans(carried):
            item = QueueItem.model_validate(orphan.parameters["item"])
            if item.item_id in self._carried:
                continue
            live = LiveLaunch(item, orphan.id)
            if orphan.state is not None and orphan.state.is_cancelling():
                live.request_stop(StopRequest(who="prefect", since=self._clock.now(), grace_seconds=0.0))
            flow_run = await self._runs.take_over(orphan)
            logger.info("Adopted the launch %s of item %s", flow_run.name, item.item_id)
            self.tally.adopted += 1
            self._carry(flow_run, item, self._slots.owe(), live)

    async def _keep_in_touch(self) -> None:
        while True:
            await self._say(AgentStatus.RUNNING if self._carried else AgentStatus.POLLING)
            try:
                assert self._registration is not None
                if (await self._session.wandb.read_agent(self._registration.agent_id)).stop_polling:
                    self._end_for(STOPPED_BY_WANDB)
                own = await self._client.read_flow_run(self._flow_run_id)
                if own.state is not None and own.state.is_cancelling():
                    self._end_for(CANCELLED_IN_PREFECT)
            except (LaunchError, httpx.HTTPError) as error:
                logger.warning("Nobody could be asked whether this agent is to stop: %s", error)
            await self._clock.sleep(HEARTBEAT_SECONDS)

    def _end_for(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        self._wake.set()

    async def _say(self, status: AgentStatus) -> None:
        assert self._registration is not None
        try:
            await self._session.wandb.heartbeat(self._registration.agent_id, status)
        except LaunchError as error:
            logger.warning("W&B did not take the agent's status %s: %s", status.value, error)

    async def _hand_over(self) -> None:
        """Leave every launch whose job is under way to the next agent; jobs are not touched."""
        self._session.calm.set()
        self._session.handover.set()
        with contextlib.suppress(httpx.HTTPError):  # its lease ends by itself
            await self._release_next_slot()
        while self._carried:
            await asyncio.wait(set(self._carried.values()))

    async def _rest(self, failures: int) -> None:
        """Wait for the next poll, or until a launch has ended and left its slot."""
        pause_seconds = self._session.block.poll_seconds
        if failures:
            ceiling = min(MAX_BACKOFF_SECONDS, pause_seconds * 2**failures)
            pause_seconds = random.uniform(pause_seconds, max(pause_seconds, ceiling))  # noqa: S311 - jitter
        self._session.calm.set()
        await sleep_until(self._wake, pause_seconds, self._clock)
        self._wake.clear()
