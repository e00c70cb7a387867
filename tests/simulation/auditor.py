"""The auditor: holds what W&B, Vertex AI and Prefect say against the invariants, effect by effect.

It knows nothing of the code that is audited: it reads items and runs at W&B, jobs and their labels at
Vertex AI, flow runs, limits and leases at Prefect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from prefect.client.schemas.objects import StateType

from tests.simulation.prefect_model import PrefectModel
from tests.simulation.scripts import End
from tests.simulation.vertex_model import Job, VertexModel
from tests.simulation.violation import Violation, require
from tests.simulation.wandb_model import Item, WandbModel
from vertex_launch.lifecycle import ItemState
from vertex_launch.vertex_types import JobState

# A create that was sent lands within the client's deadline, and the list that came before it is older.
LATE_CREATE_SECONDS = 75.0
# How long two live jobs of one attempt may stay once both can be seen and nothing goes wrong any more.
DUPLICATE_SECONDS = 600.0
# How long a person's cancel may take then.
CANCEL_SECONDS = 1200.0
MAX_RELAUNCHES = 3
_ENDS = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED})


@dataclass(frozen=True)
class Duplicate:
    """Two jobs of one item that were live at once, the older one first; `until` is how long they may be."""

    older: Job
    younger: Job
    until: float

    @property
    def surplus(self) -> Job:
        """The one that goes: of one attempt the younger, of two attempts that of the older attempt."""
        return self.younger if self.younger.attempt == self.older.attempt else self.older

    @property
    def kept(self) -> Job:
        """The one that stays."""
        return self.older if self.surplus is self.younger else self.younger


class Auditor:
    """Looks after every effect, and at the end."""

    def __init__(
        self,
        wandb: WandbModel,
        vertex: VertexModel,
        prefect: PrefectModel,
        now: Callable[[], float],
        faults_until: float,
        max_jobs: int,
    ) -> None:
        self._wandb = wandb
        self._vertex = vertex
        self._prefect = prefect
        self._now = now
        self._faults_until = faults_until
        self._max_jobs = max_jobs
        self._asked: dict[str, float] = {}
        self._denied: set[str] = set()
        # Whether an item may be refused although nothing is wrong with itself.
        self.may_refuse = False
        self._unseen: set[str] = set()
        self._ended: dict[str, StateType] = {}
        self._failed: set[str] = set()
        # What an item and its flow run were at the last look: nothing is new if they are still so.
        self._seen: dict[str, tuple[ItemState, UUID | None]] = {}
        self._known_jobs: set[str] = set()
        self._known_cancels: set[str] = set()
        self._duplicates: list[Duplicate] = []
        self._created: Counter[str] = Counter()
        self._last_started: dict[str, int] = {}
        self.duplicates = 0

    def asked_to_end(self, item_id: str) -> None:
        """A person has asked for an item's end."""
        self._asked.setdefault(item_id, self._now())

    def denied(self, item_id: str) -> None:
        """Vertex AI has said that the item's job may not be created: a reason to fail the item."""
        self._denied.add(item_id)

    def unseen(self, run_id: str) -> None:
        """W&B has not shown a run, as it does with other people's projects: none can be missed then."""
        self._unseen.add(run_id)

    def started(self, process: str, item_id: str) -> None:
        """A process has made the flow run of an item: in the order in which W&B handed them out."""
        handed_out = [index for index, pop in enumerate(self._wandb.delivered) if
                      pop.agent == process and pop.item_id == item_id]  # fmt: skip
        require(bool(handed_out), 13, f"item {item_id} was started by {process}, which did not pop it")
        last = self._last_started.get(process, -1)
        require(handed_out[-1] > last, 13, f"{process} started item {item_id} out of its turn")
        self._last_started[process] = handed_out[-1]

    def look(self) -> None:
        """Assert what can be asserted at any moment."""
        self._look_at_jobs()
        self._look_at_items()

    def _look_at_items(self) -> None:
        for item in self._wandb.items.values():
            item_id = item.item_id
            flow_run_id = self._prefect.launches.get(item_id)
            if item.state in {ItemState.CLAIMED, ItemState.FAILED}:
                require(flow_run_id is not None, 1, f"item {item_id} is {item.state} and in no book")
            state = self._prefect.flow_runs[flow_run_id].state if flow_run_id is not None else None
            if self._seen.get(item_id) == (item.state, state and state.id):
                continue
            self._seen[item_id] = (item.state, state and state.id)
            if item_id in self._failed:
                require(item.state is ItemState.FAILED, 5, f"item {item_id} had failed and is {item.state}")
            elif item.state is ItemState.FAILED:
                self._failed.add(item_id)
            if flow_run_id is not None:
                self._look_at_flow_run(item, flow_run_id)

    def _look_at_flow_run(self, item: Item, flow_run_id: UUID) -> None:
        state = self._prefect.flow_runs[flow_run_id].state
        assert state is not None
        ended = self._ended.get(item.item_id)
        if ended is not None:
            require(state.type is ended, 5, f"item {item.item_id}: {ended} was overwritten by {state.type}")
        elif state.type in _ENDS and item.state in {ItemState.CLAIMED, ItemState.FAILED}:
            # Before, the item goes back to the queue by itself, and its flow run goes on.
            self._ended[item.item_id] = state.type

    def _look_at_jobs(self) -> None:
        now = self._now()
        live = self._vertex.live()
        items = {job.run_id for job in live}
        require(len(items) <= self._max_jobs, 3, f"{len(items)} jobs are live, {self._max_jobs} may be")
        for job in live:
            if job.name not in self._known_jobs:
                self._known_jobs.add(job.name)
                self._look_at_new(job)
            if job.cancelled is None:
                self._look_whether_over(job)
            elif job.name not in self._known_cancels:
                self._known_cancels.add(job.name)
                self._look_at_cancel(job)
        for duplicate in self._duplicates:
            if now > duplicate.until and self._is_live(duplicate.older) and self._is_live(duplicate.younger):
                raise Violation(f"{duplicate.older.name} and {duplicate.younger.name} stay live together", 2)

    def _look_whether_over(self, job: Job) -> None:
        item_id = self._wandb.item_of_run[job.run_id].item_id
        state = self._prefect.flow_runs[self._prefect.launches[item_id]].state
        is_over = state is not None and state.type in _ENDS
        require(not is_over, 2, f"the launch of item {item_id} is over and {job.name} is live")

    def _look_at_new(self, job: Job) -> None:
        item = self._wandb.item_of_run.get(job.run_id)
        require(item is not None, 1, f"{job.name} is for run {job.run_id}, which no item was claimed for")
        assert item is not None
        flow_run_id = self._prefect.launches.get(item.item_id)
        require(flow_run_id is not None, 1, f"{job.name} was created without a flow run")
        require(item.state is ItemState.CLAIMED, 5, f"{job.name} was created for an item that has failed")
        require(job.attempt <= MAX_RELAUNCHES + 1, 10, f"{job.name} is attempt {job.attempt} of its item")
        for older in self._vertex.jobs_of_run[job.run_id]:
            if older is not job and self._is_live(older):
                seen_for = job.created - older.listed_from
                require(
                    seen_for < LATE_CREATE_SECONDS,
                    2,
                    f"{job.name} was created though {older.name} of the same item was live and listed "
                    f"for {seen_for:.1f} s",
                )
                self.duplicates += 1
                visible = max(older.listed_from, job.listed_from, self._faults_until)
                self._duplicates.append(Duplicate(older, job, visible + DUPLICATE_SECONDS))

    def _look_at_cancel(self, job: Job) -> None:
        item = self._wandb.item_of_run[job.run_id]
        if item.item_id in self._asked:
            return
        pairs = [pair for pair in self._duplicates if job in {pair.older, pair.younger}]
        require(bool(pairs), 8, f"{job.name} was cancelled and nobody had asked for it")
        if any(job is pair.surplus and self._is_live(pair.kept) for pair in pairs):
            return
        for pair in pairs:
            if job is pair.kept and self._is_live(pair.surplus):
                raise Violation(f"{job.name} was cancelled, and {pair.surplus.name} is the one too many", 2)

    def at_end(self) -> None:
        """Assert what holds once all faults are over and everybody has gone."""
        self.look()
        for item in self._wandb.items.values():
            self._look_at_outcome(item)
        for limit in self._prefect.limits.values():
            self._prefect.sweep()
            require(limit.active_slots == 0, 4, f"{limit.name} still counts {limit.active_slots}")
        require(not self._vertex.live(), 10, "a job is still live")

    def unsettled_items(self) -> dict[str, str]:
        """Return the items that have not ended, with what they are instead."""
        found: dict[str, str] = {}
        for item_id, item in self._wandb.items.items():
            if item.state not in {ItemState.CLAIMED, ItemState.FAILED}:
                found[item_id] = f"{self._wandb.state_of(item)} at W&B"
                continue
            state = self._prefect.flow_runs[self._prefect.launches[item_id]].state
            if state is None or state.type not in _ENDS:
                found[item_id] = f"{state and state.name} in Prefect"
        return found

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

    def _is_live(self, job: Job) -> bool:
        return not job.has_ended(self._now()) and job.cancelled is None
