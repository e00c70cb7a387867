"""What holds for slots: each that Prefect counts is a live launch's, or in the hand of an agent at work.

A launch notes the lease of its slot in a label of its flow run; whatever label that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from tests.simulation.job_audit import ENDS, PAUSE_SECONDS
from tests.simulation.owners import Owners
from tests.simulation.prefect_model import PrefectModel
from tests.simulation.process import Process
from tests.simulation.vertex_model import VertexModel
from tests.simulation.violation import require
from tests.simulation.wandb_model import WandbModel

# How long an agent that is at work has a slot in hand while nothing goes wrong.
HAND_SECONDS = 30.0
# How long a slot stays that a dead agent had in hand, or of which nobody knows: its lease, renewed for the
# last time while calls were slow, and the server's next look for leases that have ended.
LEASE_SECONDS = 100.0 + 300.0 + 15.0


class SlotAudit:
    """Looks at leases and at the launches that note them."""

    def __init__(
        self,
        wandb: WandbModel,
        vertex: VertexModel,
        prefect: PrefectModel,
        processes: Mapping[UUID, Process],
        owners: Owners,
        now: Callable[[], float],
    ) -> None:
        self._wandb = wandb
        self._vertex = vertex
        self._prefect = prefect
        self._processes = processes
        self._owners = owners
        self._now = now
        # What the labels of each launch that has not ended say.
        self._noted: dict[UUID, frozenset[str]] = {}
        # The leases that no launch notes, and since when.
        self._loose: dict[UUID, float] = {}
        # The items with a live job and no slot, and since when.
        self._bare: dict[str, float] = {}

    def look_at(self, flow_run_id: UUID) -> bool:
        """Note what a launch that has changed says of its slot; return whether that is new."""
        run = self._prefect.flow_runs[flow_run_id]
        has_ended = run.state is not None and run.state.type in ENDS
        noted = None if has_ended else frozenset(str(value) for value in run.labels.values())
        if self._noted.get(flow_run_id) == noted:
            return False
        if noted is None:
            del self._noted[flow_run_id]
        else:
            self._noted[flow_run_id] = noted
        return True

    def look(self, *, has_changed: bool) -> None:
        """Assert that nobody keeps a slot for too long."""
        if has_changed or self._prefect.are_leases_touched:
            self._prefect.are_leases_touched = False
            self._look_at_counters()
            self._look_at_leases()
            self._look_at_jobs()
        if self._loose:
            self._look_at_loose()
        if self._bare:
            self._look_at_bare()

    def _look_at_counters(self) -> None:
        for limit in self._prefect.limits.values():
            held = sum(limit.name in lease.names for lease in self._prefect.leases.values())
            counted = limit.active_slots
            is_right = counted >= held if self._prefect.has_restarted else counted == held
            require(is_right, 4, f"{limit.name} counts {counted} slots, and {held} are held")

    def _look_at_leases(self) -> None:
        noted = [text for texts in self._noted.values() for text in texts]
        loose: dict[UUID, float] = {}
        for lease_id, lease in self._prefect.leases.items():
            times = noted.count(lease.text)
            require(times <= 1, 4, f"slot {lease_id.int} is that of {times} launches")
            if not times:
                loose[lease_id] = self._loose.get(lease_id, self._now())
        self._loose = loose

    def _look_at_jobs(self) -> None:
        held = {lease.text for lease in self._prefect.leases.values()}
        bare: dict[str, float] = {}
        # Of what a server counts after its restart nobody can tell which launch it is for.
        for job in [] if self._prefect.has_restarted else self._vertex.live():
            item_id = self._wandb.item_of_run[job.run_id].item_id
            if held.isdisjoint(self._noted.get(self._prefect.launches[item_id], ())):
                bare[item_id] = self._bare.get(item_id, self._now())
        self._bare = bare

    def _look_at_bare(self) -> None:
        now = self._now()
        for item_id, since in self._bare.items():
            owner = self._owners.at_work(item_id)
            if owner is None:
                continue
            owned = self._owners.since(item_id)
            if now <= max(since, owned, owner.disturbed + PAUSE_SECONDS) + LEASE_SECONDS:
                continue
            jobs = self._vertex.jobs_of_run[self._wandb.items[item_id].run_id or ""]
            is_live = any(not job.has_ended(now) for job in jobs)
            require(not is_live, 4, f"item {item_id} has a job and no slot for {now - since:.0f} s")

    def _look_at_loose(self) -> None:
        now = self._now()
        for lease_id, since in self._loose.items():
            if now - since <= HAND_SECONDS:
                continue
            holder = self._holder(lease_id)
            is_quiet = holder is not None and holder.disturbed + PAUSE_SECONDS < since
            longest = HAND_SECONDS if is_quiet else LEASE_SECONDS
            # Who stood still or was away renews once more what another one has had, and lost, since.
            woken = [each.frozen_until for each in self._processes.values() if each.frozen_until <= now]
            woken += [each.back_at_prefect for each in self._processes.values()]
            require(
                now - max(since, *woken) <= longest or self._prefect.leases[lease_id].expires < now,
                4,
                f"slot {lease_id.int} is no launch's for {now - since:.0f} s",
            )

    def _holder(self, lease_id: UUID) -> Process | None:
        """Return who has a slot in hand; None if it is gone or about to leave."""
        holder = self._prefect.leases[lease_id].holder
        process = self._processes.get(holder) if holder is not None else None
        return process if process is not None and not (process.is_dead or process.is_ending) else None
