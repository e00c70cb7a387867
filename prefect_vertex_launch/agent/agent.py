"""The agent: opens its queues, registers at W&B, adopts what other agents left, serves, and hands over.

An agent may serve several queues, of several entities, projects and regions, each with the credentials of its
own block. Queues that share a limit take turns; others do not wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from uuid import UUID

from prefect.client.orchestration import PrefectClient

from prefect_vertex_launch.agent.queue_worker import QueueWorker
from prefect_vertex_launch.agent.round_robin import RoundRobin, by_shared_limits
from prefect_vertex_launch.agent.standby import find_predecessor
from prefect_vertex_launch.agent.supervisor import StartLaunch
from prefect_vertex_launch.agent.tally import Tally
from prefect_vertex_launch.agent.wandb_registration import WandbRegistration, register
from prefect_vertex_launch.coordination.call_share import CallShare
from prefect_vertex_launch.coordination.heartbeat import Heartbeat
from prefect_vertex_launch.coordination.mending import Mendings
from prefect_vertex_launch.coordination.prefect_api import PREFECT_FAILURES, expected_or_told
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock, SystemClock
from prefect_vertex_launch.core.errors import Conflict, LaunchError, Problem, Transient
from prefect_vertex_launch.core.retry import asked_pause_seconds
from prefect_vertex_launch.launch.queue_context import QueueContext, open_queue

logger = clean_log("prefect.vertex-launch.agent")

CONTACT_SECONDS = 15.0

STOOD_ASIDE = "StoodAside"

DRAINED = "the queue is drained"
MAX_RUNTIME = "its time is over"
STOPPED_BY_WANDB = "W&B asked it to stop polling"
TERMINATED = "its process was asked to end (SIGTERM)"
CANCELLED_IN_PREFECT = "its flow run was cancelled in Prefect"


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
        start: StartLaunch,
    ) -> None:
        self.failures: dict[str, Exception] = {}
        self._client = client
        self._drain = drain
        self._clock = clock or SystemClock()
        self._flow_run_id = flow_run_id
        self._start = start
        self._heartbeat = Heartbeat(client, flow_run_id, clock=self._clock)
        self._deadline = (
            None if max_runtime_minutes is None else self._clock.monotonic() + max_runtime_minutes * 60
        )
        self._contexts: list[QueueContext] = []
        self._call_share = CallShare(client, flow_run_id, queues=self._contexts, clock=self._clock)
        self._mendings = Mendings(client, clock=self._clock)
        self._rounds: list[RoundRobin] = []
        self._registrations: list[WandbRegistration] = []
        self._unregistered: list[QueueWorker] = []
        self._queue_ids: dict[QueueContext, str] = {}
        self._wakes: list[asyncio.Event] = []
        self._stop_reason: str | None = None

    @property
    def tally(self) -> Tally:
        """What was done for all queues."""
        return sum((worker.tally for worker in self._workers()), Tally())

    async def predecessor(self, queues: Sequence[str]) -> str | None:
        """Return the name of an agent that began earlier and is at work on one of these queues, if any."""
        found = await find_predecessor(
            self._client,
            self._flow_run_id,
            queues,
            is_over=lambda: self._stop_reason is not None,
            clock=self._clock,
        )
        return found and found.name

    async def open(self, queue: str, stack: contextlib.AsyncExitStack) -> None:
        """Open a queue's clients until `stack` ends; what is wrong with it is in `failures`."""
        try:
            context = await stack.enter_async_context(open_queue(queue, clock=self._clock))
        except Exception as error:  # noqa: BLE001 - the other queues are served all the same
            self._give_up(queue, expected_or_told(error, where=f"queue {queue}", log=logger))
        else:
            self._add_unless_served(context)

    def _add_unless_served(self, context: QueueContext) -> None:
        block = context.block
        for other in self._contexts:
            if other.block.identity == block.identity:
                problem = Problem(
                    f"block {context.block_name}",
                    f"it is of the queue {block.entity}/{block.queue}, as block {other.block_name} is",
                    why="one agent serves a queue once",
                    fix="Name one of the two blocks.",
                )
                self._give_up(context.block_name, Conflict(problem))
                return
        self.add(context)

    def add(self, context: QueueContext) -> None:
        """Serve the queue of an open context."""
        context.heartbeat = self._heartbeat
        self._contexts.append(context)

    async def run(self) -> str:
        """Serve the queues until there is a reason to end, and return that reason.

        Raises the first queue's own error, such as AuthenticationFailed or NotFound, when none of them
        can be served.
        """
        await self._prepare()
        if not self._rounds:
            raise next(iter(self.failures.values()), ValueError("no queue was named"))
        try:
            async with contextlib.AsyncExitStack() as stack:
                for worker in self._workers():
                    await stack.enter_async_context(worker.slots_renewed())
                for duty, name in (
                    (self._keep_beating, "the heartbeat"),
                    (self._call_share.keep_sharing, "the share of calls"),
                    (self._keep_in_touch, "the contact to W&B"),
                    (self._keep_looking_for_cancel, "the look for a cancel in Prefect"),
                ):
                    await stack.enter_async_context(in_background(duty, name, self._clock))
                try:
                    async with asyncio.TaskGroup() as group:
                        for turns in self._rounds:
                            group.create_task(self._serve(turns))
                finally:
                    await asyncio.gather(*(worker.hand_over() for worker in self._workers()))
        finally:
            await asyncio.gather(*(registration.end() for registration in self._registrations))
        reason = self._reason_to_end() or DRAINED
        logger.info("Agent ends because %s. %s", reason, self.tally)
        return reason

    async def _prepare(self) -> None:
        """Make a worker of each queue that can be served, in groups that share a limit, and register them."""
        contexts = [context for context in self._contexts if await self._can_serve(context)]
        groups: list[tuple[asyncio.Event, list[QueueWorker]]] = []
        for members in by_shared_limits([context.block.shared_limits for context in contexts]):
            wake = asyncio.Event()
            groups.append((wake, [self._worker(contexts[index], wake) for index in members]))
        self._unregistered = [worker for _, workers in groups for worker in workers]
        await self._register()
        for wake, workers in groups:
            served = [worker for worker in workers if worker.context.block_name not in self.failures]
            if served:
                self._wakes.append(wake)
                self._rounds.append(RoundRobin(served, wake=wake, clock=self._clock))

    async def _can_serve(self, context: QueueContext) -> bool:
        """Whether a queue is there; one that cannot be asked for now may be, and its launches go on."""
        try:
            await self._worker(context, asyncio.Event()).prepare()
            await self._queue_id(context)
        except Transient as error:
            logger.warning("Queue %s takes no items for now: %s", context.block_name, error)
        except Exception as error:  # noqa: BLE001 - as above
            told = expected_or_told(error, where=f"queue {context.block_name}", log=logger)
            self._give_up(context.block_name, told)
            return False
        return True

    async def _register(self) -> None:
        """Register those workers at W&B that are not yet, together for each entity.

        Who is refused before anything is served serves nothing; later what is under way goes on.
        """
        by_entity: dict[tuple[str, str], list[QueueWorker]] = {}
        for worker in self._unregistered:
            queue = worker.context.block.identity
            by_entity.setdefault((queue.server, queue.entity), []).append(worker)
        for workers in by_entity.values():
            try:
                queue_ids = [await self._queue_id(worker.context) for worker in workers]
                registration = await register(workers, queue_ids)
            except LaunchError as error:
                if isinstance(error, Transient) or self._rounds:
                    logger.warning("This agent is not registered at W&B for now: %s", error)
                    continue
                for worker in workers:
                    self._give_up(worker.context.block_name, error)
            else:
                self._registrations.append(registration)
            self._unregistered = [worker for worker in self._unregistered if worker not in workers]

    async def _queue_id(self, context: QueueContext) -> str:
        if context not in self._queue_ids:
            self._queue_ids[context] = (await context.wandb.find_queue()).queue_id
        return self._queue_ids[context]

    def _worker(self, context: QueueContext, wake: asyncio.Event) -> QueueWorker:
        return QueueWorker(
            context,
            self._client,
            agent_run_id=self._flow_run_id,
            wake=wake,
            mendings=self._mendings,
            start=self._start,
        )

    def _give_up(self, queue: str, error: Exception) -> None:
        logger.error("Queue %s cannot be served: %s", queue, error)
        self.failures[queue] = error

    def _workers(self) -> Sequence[QueueWorker]:
        return [worker for turns in self._rounds for worker in turns.workers]

    async def _serve(self, turns: RoundRobin) -> None:
        """Serve queues, and adopt what other agents left, first of all and again and again."""
        async with contextlib.AsyncExitStack() as stack:
            for worker in turns.workers:
                await worker.try_to_adopt()
                await stack.enter_async_context(in_background(worker.keep_adopting, "adoption", self._clock))
            await turns.serve(drain=self._drain, is_over=lambda: self._reason_to_end() is not None)

    def _reason_to_end(self) -> str | None:
        if self._deadline is not None and self._clock.monotonic() >= self._deadline:
            return MAX_RUNTIME
        return self._stop_reason

    async def _keep_beating(self) -> None:
        await self._heartbeat.keep_beating(self._look_at_own)

    async def _look_at_own(self) -> None:
        for worker in self._workers():
            await worker.let_go_of_others()

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
            except PREFECT_FAILURES as error:
                logger.warning("Prefect could not be asked whether this agent is to stop: %s", error)
            await self._clock.sleep(CONTACT_SECONDS)

    def end_for(self, reason: str) -> None:
        """Make the agent end as soon as it can leave what is under way to the next one."""
        self._stop_reason = self._stop_reason or reason
        for wake in self._wakes:
            wake.set()
