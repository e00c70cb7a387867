"""The auditor: holds what W&B, Vertex AI and Prefect say against the invariants, effect by effect.

It knows nothing of the code that is audited: it reads items and runs at W&B, jobs and their labels at
Vertex AI, flow runs, limits and leases at Prefect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from uuid import UUID

from prefect.client.schemas.objects import StateType

from tests.simulation.job_audit import ENDS, MAX_RELAUNCHES, JobAudit
from tests.simulation.owners import Owners
from tests.simulation.prefect_model import PrefectModel
from tests.simulation.process import Process
from tests.simulation.scripts import End
from tests.simulation.slot_audit import SlotAudit
from tests.simulation.turns import Turns
from tests.simulation.vertex_model import Job, JobState, VertexModel
from tests.simulation.violation import require
from tests.simulation.wandb_model import Item, ItemState, WandbModel

_SETTLED = frozenset({ItemState.CLAIMED, ItemState.FAILED})
# How long a person's cancel may take then.
CANCEL_SECONDS = 1200.0


class Auditor:
    """Looks after every effect, and at the end."""

    def __init__(
        self,
        wandb: WandbModel,
        vertex: VertexModel,
        prefect: PrefectModel,
        processes: Mapping[UUID, Process],
        now: Callable[[], float],
        faults_until: float,
        max_jobs: int,
    ) -> None:
        self._wandb = wandb
        self._vertex = vertex
        self._prefect = prefect
        self._now = now
        self._faults_until = faults_until
        self._asked: dict[str, float] = {}
        self._denied: set[str] = set()
        # Whether an item may be refused although nothing is wrong with itself.
        self.may_refuse = False
        self._unseen: set[str] = set()
        self._ended: dict[str, StateType] = {}
        self._failed: set[str] = set()
        self._turns = Turns(wandb, prefect, now)
        self._owners = Owners(prefect, processes, now)
        self._slots = SlotAudit(wandb, vertex, prefect, processes, self._owners, now)
        self._jobs = JobAudit(wandb, vertex, prefect, self._owners, self._asked, now, max_jobs)

    @property
    def duplicates(self) -> int:
        """How many times two jobs of one item were live at once."""
        return self._jobs.duplicates

    def asked_to_end(self, item_id: str) -> None:
        """A person has asked for an item's end."""
        self._asked.setdefault(item_id, self._now())

    def denied(self, item_id: str) -> None:
        """Vertex AI has said that the item's job may not be created: a reason to fail the item."""
        self._denied.add(item_id)

    def unseen(self, run_id: str) -> None:
        """W&B has not shown a run, as it does with other people's projects: none can be missed then."""
        self._unseen.add(run_id)

    def started(self, process: Process, item_id: str) -> None:
        """A process has made the flow run of an item: in the order in which W&B handed them out."""
        self._turns.started(process, item_id)

    def writes(self, process: Process, item_id: str, invariant: int) -> Callable[[], None]:
        """A process begins a call that writes for an item; return what to assert once it is carried out."""
        return self._owners.writes(process, item_id, invariant)

    def look(self) -> None:
        """Assert what can be asserted at any moment, of all that has changed since the last look."""
        touched, are_slots_changed = self._prefect.touched, bool(self._vertex.touched)
        for flow_run_id in touched:
            self._owners.look_at(flow_run_id)
            are_slots_changed |= self._slots.look_at(flow_run_id)
            self._wandb.touched[self._prefect.items[flow_run_id]] = None
        touched.clear()
        self._jobs.look()
        self._turns.look()
        self._slots.look(has_changed=are_slots_changed)
        for item_id in self._wandb.touched:
            self._look_at_item(self._wandb.items[item_id])
        self._wandb.touched.clear()

    def _look_at_item(self, item: Item) -> None:
        item_id = item.item_id
        flow_run_id = self._prefect.launches.get(item_id)
        if item.state in _SETTLED:
            require(flow_run_id is not None, 1, f"item {item_id} is {item.state} and in no book")
        if item_id in self._failed:
            require(item.state is ItemState.FAILED, 5, f"item {item_id} had failed and is {item.state}")
        elif item.state is ItemState.FAILED:
            self._failed.add(item_id)
        messages = set(item.messages)
        require(len(messages) <= 1, 6, f"item {item_id} has failed for more than one reason: {messages}")
        if flow_run_id is not None:
            self._look_at_flow_run(item, flow_run_id)

    def _look_at_flow_run(self, item: Item, flow_run_id: UUID) -> None:
        state = self._prefect.flow_runs[flow_run_id].state
        assert state is not None
        ended = self._ended.get(item.item_id)
        if ended is not None:
            require(state.type is ended, 5, f"item {item.item_id}: {ended} was overwritten by {state.type}")
        elif state.type in ENDS and item.state in _SETTLED:
            # Before, the item goes back to the queue by itself, and its flow run goes on.
            self._ended[item.item_id] = state.type
            if item.run_id is not None:
                self._jobs.look_whether_over(item.item_id, item.run_id)

    def at_end(self) -> None:
        """Assert what holds once all faults are over and everybody has gone."""
        self.look()
        for item in self._wandb.items.values():
            self._look_at_outcome(item)
        for limit in self._prefect.limits.values():
            self._prefect.sweep()
            require(limit.active_slots == 0, 4, f"{limit.name} still counts {limit.active_slots}")
        require(not self._vertex.live(), 10, "a job is still live")

    def unsettled_items(self) -> Iterator[tuple[str, str]]:
        """The items that have not ended, with what they are instead."""
        for item_id, item in self._wandb.items.items():
            if item.state not in _SETTLED:
                yield item_id, f"{self._wandb.state_of(item)} at W&B"
                continue
            state = self._prefect.flow_runs[self._prefect.launches[item_id]].state
            if state is None or state.type not in ENDS:
                yield item_id, f"{state and state.name} in Prefect"

    def _look_at_outcome(self, item: Item) -> None:
        item_id = item.item_id
        ended = self._ended.get(item_id)
        require(ended is not None, 10, f"item {item_id} has not ended")
        jobs = sorted(self._jobs_of(item), key=lambda job: (job.attempt, -job.created))
        is_refused = self.may_refuse or item_id in self._denied
        if not jobs:
            may_be_without = item.script.is_poison or item_id in self._asked or is_refused
            require(may_be_without, 10, f"item {item_id} ended as {ended} without a job")
            require(item.state is ItemState.FAILED, 6, f"the end of item {item_id} was not reported")
            return
        last = jobs[-1]
        state = last.state_at(self._now())
        if item_id in self._asked:
            latest = max(self._asked[item_id], self._faults_until) + CANCEL_SECONDS
            late = [job.name for job in jobs if (job.end_time() or 0.0) > latest]
            require(not late, 7, f"the end of item {item_id} was asked for and {late} ended too late")
        is_mute = not item.script.calls_init
        if state is JobState.JOB_STATE_SUCCEEDED and is_mute and item.run_id in self._unseen:
            return
        if state is JobState.JOB_STATE_SUCCEEDED and not is_mute:
            require(item.state is ItemState.CLAIMED, 6, f"item {item_id} succeeded and is {item.state}")
            is_right = ended is StateType.COMPLETED or (
                ended is StateType.CANCELLED and item_id in self._asked
            )
        else:
            require(item.state is ItemState.FAILED, 6, f"the end of item {item_id} was not reported")
            is_right = ended in {StateType.FAILED, StateType.CANCELLED}
        require(is_right, 6, f"{last.name} of item {item_id} is {state!r}, its launch {ended}")
        if last.end is End.PREEMPTION and item_id not in self._asked and not is_refused:
            require(last.attempt > MAX_RELAUNCHES, 10, f"item {item_id} was preempted and not run again")

    def _jobs_of(self, item: Item) -> list[Job]:
        return self._vertex.jobs_of_run.get(item.run_id or "", [])
