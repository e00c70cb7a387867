"""The launches that other agents carry, or that wait to be started again: whether each has its slot."""

from __future__ import annotations

from math import inf
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from prefect_vertex_launch.coordination.launch_record import lease_of
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.coordination.side_by_side import side_by_side
from prefect_vertex_launch.coordination.slots import LEASE_SECONDS, Slots
from prefect_vertex_launch.launch.item import QueueItem

# So long a lease that was renewed lasts at the least, whatever has become of who renews it.
COVERED_SECONDS = LEASE_SECONDS / 2


class Others:
    """The launches of a queue's other agents; each is asked about long before its slot can end."""

    def __init__(self, runs: LaunchStore, slots: Slots) -> None:
        self._runs = runs
        self._slots = slots
        # Those that had a slot or needed none: the lease they noted, and the look at which it was renewed.
        self._covered: dict[UUID, tuple[UUID | None, float]] = {}

    async def are_covered(self, looked: float) -> bool:
        """Whether every launch that another agent carries has its slot, as far as that can be told.

        The launches are those of the last look for orphans; `looked` is when that began, in seconds of the
        agent's monotonic clock. Raises httpx.HTTPError when Prefect cannot be asked.
        """
        others = self._runs.others
        are_covered = await side_by_side(lambda flow_run: self._is_covered(flow_run, looked), others)
        self._covered = {run.id: self._covered[run.id] for run in others if run.id in self._covered}
        return all(are_covered)

    async def _is_covered(self, flow_run: FlowRun, looked: float) -> bool:
        """Whether another agent's launch has a slot or needs none; a slot that it has is renewed in time.

        Its agent may have written its name on it and not come to carry it yet, for as long as calls go wrong.
        """
        lease_id = lease_of(flow_run.labels)
        known_lease_id, renewed = self._covered.pop(flow_run.id, (None, -inf))
        if looked - renewed > COVERED_SECONDS or known_lease_id != lease_id:
            if not await self._has_slot(flow_run, lease_id):
                return False
            renewed = looked
        self._covered[flow_run.id] = lease_id, renewed
        return True

    async def _has_slot(self, flow_run: FlowRun, lease_id: UUID | None) -> bool:
        if self._slots.is_given_back(flow_run.labels) or await self._slots.renew_of_another(lease_id):
            return True
        if QueueItem.model_validate(flow_run.parameters["item"]).is_scheduler:
            return True
        return await self._runs.is_over(flow_run.id)  # since it was looked at
