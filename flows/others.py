"""The launches that other agents carry, as one agent sees them: whether each of them has its slot."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from flows.launch_runs import LaunchRuns
from flows.queue_item import QueueItem
from flows.side_by_side import side_by_side
from flows.slot_label import lease_of
from flows.slots import LEASE_SECONDS, Slots

# So long a lease that was there lasts, whatever has become of who renews it.
COVERED_SECONDS = LEASE_SECONDS / 2


class Others:
    """The launches of a queue's other agents, asked about once each as long as their slots stay known."""

    def __init__(self, runs: LaunchRuns, slots: Slots) -> None:
        self._runs = runs
        self._slots = slots
        # Those that have a slot or need none, by the lease that they note, and when they were last looked at.
        self._covered: dict[UUID, UUID | None] = {}
        self._covered_at = -inf

    async def are_covered(self, looked: float) -> bool:
        """Whether every launch that another agent carries has its slot, as far as that can be told.

        The launches are those of the last look for orphans; `looked` is when that began, in seconds of the
        agent's monotonic clock. Raises httpx.HTTPError when Prefect cannot be asked.
        """
        # A slot that was there stays, unless this agent has not looked for too long.
        known = self._covered if looked - self._covered_at <= COVERED_SECONDS else {}
        others = self._runs.others
        are_covered = await side_by_side(lambda flow_run: self._is_covered(flow_run, known), others)
        self._covered_at = looked
        self._covered = {
            flow_run.id: lease_of(flow_run.labels)
            for flow_run, is_covered in zip(others, are_covered, strict=True)
            if is_covered
        }
        return all(are_covered)

    async def _is_covered(self, flow_run: FlowRun, known: Mapping[UUID, UUID | None]) -> bool:
        """Whether another agent's launch has a slot or needs none, given what is `known` to be so."""
        lease_id = lease_of(flow_run.labels)
        if flow_run.id in known and known[flow_run.id] == lease_id:
            return True
        if self._slots.is_given_back(flow_run.labels) or await self._slots.renew_of_another(lease_id):
            return True
        if QueueItem.model_validate(flow_run.parameters["item"]).is_scheduler:
            return True
        return await self._runs.is_over(flow_run.id)  # since it was looked at
