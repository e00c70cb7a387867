"""What other agents left: found, taken over, and counted before anything new is started."""

from __future__ import annotations

import contextlib
from math import inf

from prefect.client.schemas.objects import FlowRun
from pydantic import SecretStr, ValidationError

from prefect_vertex_launch.agent.others import Others
from prefect_vertex_launch.agent.supervisor import Supervisor
from prefect_vertex_launch.coordination.launch_record import (
    CANCELLED,
    MAY_HAVE_DUPLICATE,
    item_of,
    parents_of,
    waited_of,
)
from prefect_vertex_launch.coordination.launch_store import FRESH_SECONDS, LaunchStore
from prefect_vertex_launch.coordination.slots import QueueSlots
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.errors import Problem
from prefect_vertex_launch.core.states import Requester
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig
from prefect_vertex_launch.launch import render
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.queue_context import QueueContext

logger = clean_log("prefect.vertex-launch.agent")

# One look for launches to adopt may fail or take its time; after that nobody knows any more.
CLEAR_SECONDS = 75.0


class Adoption:
    """Takes over the launches of one queue that nobody carries on, and lets go of those that others took."""

    def __init__(
        self, context: QueueContext, store: LaunchStore, slots: QueueSlots, supervisor: Supervisor
    ) -> None:
        self._context = context
        self._clock = context.clock
        self._store = store
        self._slots = slots
        self._supervisor = supervisor
        self._others = Others(store, slots.jobs)
        # When it was last clear which launches are left to adopt, and when all that were left were adopted.
        self._clear_at = -inf
        self._adopted_at = -inf

    def is_clear(self) -> bool:
        """Whether no launch can be under way unattended, with its slot given to another one."""
        is_recent = self._clock.monotonic() - self._clear_at <= CLEAR_SECONDS
        return is_recent and self._clear_at > self._supervisor.left_at

    def is_every_job_counted(self) -> bool:
        """Whether every job that may run has its slot, of those launches that were this agent's.

        Launches that have no job do not wait for each other.
        """
        launches = self._supervisor.launches.values()
        waiting = {launch.slot for launch in launches if launch.is_waiting_for_slot}
        is_recent = self._clock.monotonic() - self._adopted_at <= CLEAR_SECONDS
        is_all_here = is_recent and self._adopted_at > self._supervisor.left_at
        return is_all_here and waiting.issuperset(self._slots.jobs.unsure)

    async def adopt(self) -> set[str]:
        """Carry on what another agent left; return the items. Raises httpx.HTTPError."""
        looked = self._clock.monotonic()
        orphans = await self._store.find_orphans(self._supervisor.flow_run_ids())
        items = {orphan.id: _item_of(orphan) for orphan in orphans}
        wanted = [orphan for orphan in orphans if items[orphan.id].item_id not in self._supervisor]
        adopted: set[str] = set()
        for flow_run in await self._store.adopt(wanted):
            if await self._take_over(flow_run, items[flow_run.id], looked):
                adopted.add(items[flow_run.id].item_id)

        is_covered = await self._others.are_covered(looked)
        is_all_here = len(adopted) == len(wanted)
        # One that another agent was quicker to adopt may be owed a slot there, as the next look will tell.
        if is_all_here and not any(self._store.is_own(run) for run in self._store.others):
            self._adopted_at = looked
        if is_all_here and is_covered:
            self._clear_at = looked
        return adopted

    async def _take_over(self, flow_run: FlowRun, item: QueueItem, looked: float) -> bool:
        config = await render.configuration(self._context, item)
        launch = self.launch_of(item, flow_run, config)
        await self._store.record_parents(flow_run, render.job_parents(self._context, config))
        slots = self._slots.of(is_scheduler=item.is_scheduler)
        slot = await slots.take_over(flow_run.labels, flow_run.id)
        with contextlib.ExitStack() as undo:
            # Also if that cannot be asked: the next pass takes it over again.
            undo.callback(slots.forget, slot)
            if await self.has_gone_on(flow_run, looked):
                return False
            undo.pop_all()
        logger.info("Adopted the launch %s of item %s", flow_run.name, item.item_id)
        self._supervisor.tally.adopted += 1
        self._supervisor.supervise(flow_run, launch, slots, slot)
        return True

    async def has_gone_on(self, flow_run: FlowRun, since: float) -> bool:
        """Whether a launch that was ours at a time that is not just now is another's since, or has ended."""
        is_old = self._clock.monotonic() - since > FRESH_SECONDS
        return is_old and await self._store.has_gone_on(flow_run.id)

    def launch_of(
        self, item: QueueItem, flow_run: FlowRun, config: QueueConfig | None, api_key: SecretStr | None = None
    ) -> Launch:
        """Return the launch of an item as its flow run tells of it."""
        launch = Launch(
            item,
            flow_run.id,
            self._context,
            api_key=api_key,
            config=config,
            may_have_job=flow_run.run_count > 0,
            may_have_duplicate=MAY_HAVE_DUPLICATE in flow_run.labels,
            parents=parents_of(flow_run.labels),
            waited=waited_of(flow_run.labels),
        )
        if CANCELLED in flow_run.labels:
            launch.request_end(Requester.PREFECT)
        return launch

    async def let_go_of_others(self) -> None:
        """Leave the launches that another agent has taken over. Raises httpx.HTTPError.

        One whose flow run was deleted, or ended by hand, is seen through all the same: its job runs.
        """
        launches = self._supervisor.launches.values()
        by_flow_run = {launch.flow_run_id: launch for launch in launches if not launch.is_taken_over}
        for run in await self._store.read(set(by_flow_run)):
            launch = by_flow_run[run.id]
            if not self._store.is_own(run):
                self._supervisor.leave_to_another(launch)
                self._slots.forget_launch(launch.flow_run_id)
            elif run.state is not None and run.state.is_cancelled() and not launch.job_ended.is_set():
                launch.request_end(Requester.PREFECT)


def _item_of(flow_run: FlowRun) -> QueueItem:
    """Return the item of a launch; one that cannot be read any more is failed with the reason."""
    try:
        return QueueItem.model_validate(flow_run.parameters["item"])
    except (KeyError, ValidationError):
        problem = Problem(
            f"flow run {flow_run.name}",
            "its parameter `item` cannot be read",
            why="somebody has changed it, or it was made by another version",
            fix="Push the run again.",
        )
        return QueueItem.unusable(item_of(flow_run.tags) or flow_run.name, problem)
