"""What holds for jobs: one for each item and attempt, no more than may be, none cancelled for nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prefect.client.schemas.objects import StateType

from tests.simulation.duplicate import Duplicate
from tests.simulation.owners import Owners
from tests.simulation.prefect_model import PrefectModel
from tests.simulation.vertex_model import Job, VertexModel
from tests.simulation.violation import Violation, require
from tests.simulation.wandb_model import ItemState, WandbModel

MAX_RELAUNCHES = 3
ENDS = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED})
# Between the answer to the list and the create.
STALE_SECONDS = 5.0
# A job that is listed so soon, after the answer to its create was lost or its launch was adopted, is found.
WINDOW_SECONDS = 10.0
# Whoever stands still for longer than this, just before a create, is taken for gone.
STANDSTILL_SECONDS = 90.0
# A pass of the watch, its calls included.
PASS_SECONDS = 16.0
# What an adoption takes: to read, to mark and to start the launch, and to look for its job.
ADOPTION_SECONDS = 10.0
# How long whoever had no answer may wait before the next try.
PAUSE_SECONDS = 330.0


class JobAudit:
    """Looks at each job when it is created and when its cancel is asked for."""

    def __init__(
        self,
        wandb: WandbModel,
        vertex: VertexModel,
        prefect: PrefectModel,
        owners: Owners,
        asked: Mapping[str, float],
        now: Callable[[], float],
        max_jobs: int,
    ) -> None:
        self._wandb = wandb
        self._vertex = vertex
        self._prefect = prefect
        self._owners = owners
        self._asked = asked
        self._now = now
        self._max_jobs = max_jobs
        self._known: set[Job] = set()
        self._duplicates: list[Duplicate] = []
        self.duplicates = 0

    def look(self) -> None:
        """Look at the jobs that have changed, and whether duplicates stay for too long."""
        for job in self._vertex.touched:
            if job not in self._known:
                self._known.add(job)
                self._look_at_new(job)
            elif job.cancelled is not None:
                self._look_at_cancel(job)
        if self._vertex.touched:
            self._vertex.touched.clear()
            self._count()
        for duplicate in self._duplicates:
            self._look_at_duplicate(duplicate)

    def look_whether_over(self, item_id: str, run_id: str) -> None:
        """Assert that no job is live of a launch that is over."""
        for job in self._vertex.jobs_of_run.get(run_id, ()):
            require(not self.is_live(job), 2, f"the launch of item {item_id} is over and {job.name} is live")

    def is_live(self, job: Job) -> bool:
        """Whether a job has not ended and nobody has asked for its end."""
        return not job.has_ended(self._now()) and job.cancelled is None

    def _count(self) -> None:
        live = self._vertex.live()
        surplus = {duplicate.surplus for duplicate in self._duplicates}
        count = sum(job not in surplus for job in live)
        require(count <= self._max_jobs, 3, f"{count} jobs are live, {self._max_jobs} may be")

    def _look_at_new(self, job: Job) -> None:
        item = self._wandb.item_of_run.get(job.run_id)
        require(item is not None, 1, f"{job.name} is for run {job.run_id}, which no item was claimed for")
        assert item is not None
        flow_run_id = self._prefect.launches.get(item.item_id)
        require(flow_run_id is not None, 1, f"{job.name} was created without a flow run")
        assert flow_run_id is not None
        state = self._prefect.flow_runs[flow_run_id].state
        is_over = state is not None and state.type in ENDS
        require(not is_over, 2, f"the launch of item {item.item_id} is over and {job.name} was created")
        require(item.state is ItemState.CLAIMED, 5, f"{job.name} was created for an item that has failed")
        require(job.attempt <= MAX_RELAUNCHES + 1, 10, f"{job.name} is attempt {job.attempt} of its item")
        self._look_at_look(job, job.parent)
        for older in self._vertex.jobs_of_run[job.run_id]:
            if older is not job and self.is_live(older):
                self._look_at_look(job, older.parent, older)
                self._look_at_window(job, older, item.item_id)
                self.duplicates += 1
                self._duplicates.append(Duplicate(older, job))

    def _look_at_look(self, job: Job, parent: str, older: Job | None = None) -> None:
        """Assert that whoever created a job had just asked for others, and was not shown any."""
        create = job.create
        look = create.process.looks.get((job.key, parent))
        require(look is not None, 2, f"{job.name} was created without a look for another one in {parent}")
        assert look is not None
        age = create.sent - look.answered
        require(age <= STALE_SECONDS, 2, f"{job.name} was created {age:.1f} s after the last look")
        is_shown = older is not None and older.listed_from <= look.made
        require(not is_shown, 2, f"{job.name} was created though a list had shown {older and older.name}")

    def _look_at_window(self, job: Job, older: Job, item_id: str) -> None:
        """Assert that a duplicate is one of those that cannot be ruled out."""
        create = job.create
        if job.created - create.sent > STANDSTILL_SECONDS and create.sent < older.created:
            return
        is_own = create.process is older.create.process
        looked_from = older.create.answered if is_own else self._owners.since(item_id)
        seconds = older.listed_from - looked_from
        require(
            seconds > WINDOW_SECONDS,
            2,
            f"{job.name} was created though {older.name} of the same item was listed {seconds:.1f} s after "
            f"{'its answer was lost' if is_own else 'its launch was adopted'}",
        )

    def _look_at_duplicate(self, duplicate: Duplicate) -> None:
        if not (self.is_live(duplicate.older) and self.is_live(duplicate.younger)):
            return
        item_id = self._wandb.item_of_run[duplicate.older.run_id].item_id
        owner = self._owners.at_work(item_id)
        if owner is None:
            return
        since = max(duplicate.listed_from, self._owners.since(item_id) + ADOPTION_SECONDS)
        until = max(since, owner.disturbed + PAUSE_SECONDS) + PASS_SECONDS
        if self._now() > until:
            names = f"{duplicate.older.name} and {duplicate.younger.name}"
            raise Violation(f"{names} stay live together, listed for {self._now() - since:.0f} s", 2)

    def _look_at_cancel(self, job: Job) -> None:
        item = self._wandb.item_of_run[job.run_id]
        if item.item_id in self._asked:
            return
        pairs = [pair for pair in self._duplicates if job in {pair.older, pair.younger}]
        require(bool(pairs), 8, f"{job.name} was cancelled and nobody had asked for it")
        if any(job is pair.surplus and self.is_live(pair.kept) for pair in pairs):
            return
        for pair in pairs:
            if job is pair.kept and self.is_live(pair.surplus):
                raise Violation(f"{job.name} was cancelled, and {pair.surplus.name} is the one too many", 2)
