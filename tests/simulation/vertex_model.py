"""Vertex AI as the simulation has it: jobs whose states progress with the time, and lists that lag."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from functools import lru_cache
from math import inf
from typing import Any

from prefect_vertex_launch.core import vertex_types
from prefect_vertex_launch.core.errors import NotFound, OverQuota, Problem
from prefect_vertex_launch.core.states import JobRecord
from tests.simulation.process import Process
from tests.simulation.scripts import End, Script
from tests.simulation.virtual_time import EPOCH

PROJECT = "sim"
LOCATION = "us-central1"
UNKNOWN_STATE = 77


class JobState(IntEnum):
    """The states of a job, by the numbers that Vertex AI's API gives them."""

    JOB_STATE_QUEUED = 1
    JOB_STATE_PENDING = 2
    JOB_STATE_RUNNING = 3
    JOB_STATE_SUCCEEDED = 4
    JOB_STATE_FAILED = 5
    JOB_STATE_CANCELLING = 6
    JOB_STATE_CANCELLED = 7
    JOB_STATE_PAUSED = 8
    JOB_STATE_EXPIRED = 9


_S = JobState
_ENDED = frozenset(
    {_S.JOB_STATE_SUCCEEDED, _S.JOB_STATE_FAILED, _S.JOB_STATE_CANCELLED, _S.JOB_STATE_EXPIRED}
)
_ENDS: dict[End, tuple[JobState, str]] = {
    End.SUCCESS: (_S.JOB_STATE_SUCCEEDED, ""),
    End.FAILURE: (
        _S.JOB_STATE_FAILED,
        "The replica workerpool0-0 exited with a non-zero status of 1.",
    ),
    End.PREEMPTION: (_S.JOB_STATE_FAILED, "The job was preempted."),
    End.STOCKOUT: (_S.JOB_STATE_FAILED, "Resources are insufficient in region: us-central1."),
    End.CANCELLED_IN_CONSOLE: (_S.JOB_STATE_CANCELLED, ""),
}


@dataclass(eq=False)
class Create:
    """A call that creates a job: who made it, when, and when it had an answer or was given up."""

    process: Process
    sent: float
    answered: float = inf


@dataclass(eq=False)
class Job:
    """A custom job; times are virtual seconds."""

    name: str
    labels: dict[str, str]
    run_id: str
    script: Script
    created: float
    listed_from: float
    cancel_seconds: float
    create: Create
    started: float = 0.0
    # From its start until then it is in a state that no client knows.
    odd_until: float = 0.0
    ends: float | None = None
    end: End = End.SUCCESS
    cancelled: float | None = None
    stopped: float | None = None

    @property
    def parent(self) -> str:
        """The project and region that it is in."""
        return self.name.rsplit("/", 2)[0]

    @property
    def key(self) -> str:
        """The label by which it is found again."""
        return self.labels["launch-item"]

    @property
    def attempt(self) -> int:
        return int(self.labels["launch-attempt"])

    def end_time(self) -> float | None:
        """When it ends, as far as that is known by now."""
        ends = self.ends
        if self.stopped is not None and self.script.heeds_stop and self.started <= self.stopped:
            ends = self.stopped + 5.0
        if self.cancelled is not None:
            cancelled = self.cancelled + self.cancel_seconds
            return cancelled if ends is None or cancelled < ends else ends
        return ends

    def state_at(self, now: float) -> JobState | int:
        ends = self.end_time()
        if ends is not None and now >= ends:
            if self.cancelled is not None and ends == self.cancelled + self.cancel_seconds:
                return _S.JOB_STATE_CANCELLED
            return _ENDS[self.end if self.end is not End.NEVER else End.FAILURE][0]
        if self.cancelled is not None and now >= self.cancelled:
            return _S.JOB_STATE_CANCELLING
        if now < self.started:
            return _S.JOB_STATE_PENDING
        return UNKNOWN_STATE if now < self.odd_until else _S.JOB_STATE_RUNNING

    def has_ended(self, now: float) -> bool:
        ends = self.end_time()
        return ends is not None and now >= ends

    def record_at(self, now: float) -> JobRecord:
        state = self.state_at(now)
        ends = self.end_time()
        message = ""
        if state is _S.JOB_STATE_FAILED:
            message = _ENDS[self.end if self.end is not End.NEVER else End.FAILURE][1]
        return JobRecord(
            name=self.name,
            state=vertex_types.JobState(state) if isinstance(state, JobState) else state,
            display_name="run",
            labels=self.labels,
            create_time=EPOCH + timedelta(seconds=self.created),
            start_time=EPOCH + timedelta(seconds=self.started) if self._has_started(now) else None,
            end_time=EPOCH + timedelta(seconds=ends) if ends is not None and state in _ENDED else None,
            update_time=EPOCH + timedelta(seconds=now),
            error_code=3 if message else 0,
            error_message=message,
        )

    def program_state(self, now: float) -> str | None:
        """The state of its run at W&B."""
        if not self.script.calls_init or not self._has_started(now):
            return None
        return "finished" if self.has_ended(now) else "running"

    def _has_started(self, now: float) -> bool:
        ends = self.end_time()
        return now >= self.started and (ends is None or ends > self.started)


class VertexModel:
    """Vertex AI's side. `script_of_run` finds the script of a job by its program's run id."""

    def __init__(self, now: Callable[[], float], script_of_run: Callable[[str], Script]) -> None:
        self._now = now
        self._script_of_run = script_of_run
        self.jobs: dict[str, Job] = {}
        self.jobs_of_run: dict[str, list[Job]] = {}
        # Those that were created or cancelled since somebody last looked.
        self.touched: dict[Job, None] = {}
        self._live: list[Job] = []
        self.refused: dict[str, int] = {}
        self.lag_seconds: Callable[[], float] = lambda: 0.0
        self.cancel_seconds: Callable[[], float] = lambda: 10.0
        self.odd_seconds: Callable[[], float] = lambda: 0.0
        self.calls: deque[float] = deque()
        self.submissions: deque[float] = deque()
        self.most_calls = 0
        self.most_submissions = 0

    def count(self, *, is_submission: bool) -> None:
        """Count a call; `most_calls` and `most_submissions` are the most in any minute."""
        now = self._now()
        self.most_calls = max(self.most_calls, _count_in(self.calls, now))
        if is_submission:
            self.most_submissions = max(self.most_submissions, _count_in(self.submissions, now))

    def create(self, parent: str, job: Any, run_id: str, call: Create) -> Job:
        labels = dict(job.labels)
        script = self._script_of_run(run_id)
        if self.refused.get(run_id, 0) < script.refusals:
            self.refused[run_id] = self.refused.get(run_id, 0) + 1
            raise OverQuota("custom_model_training_cpus is used up", is_capacity=True)
        now = self._now()
        made = Job(
            name=f"{parent}/customJobs/{len(self.jobs) + 1}",
            labels=labels,
            run_id=run_id,
            script=script,
            created=now,
            listed_from=now + self.lag_seconds(),
            cancel_seconds=self.cancel_seconds(),
            create=call,
            started=now + script.pending_seconds,
        )
        made.odd_until = made.started + self.odd_seconds()
        made.end = script.end_of(made.attempt)
        if made.end is not End.NEVER:
            is_quick = made.end is End.STOCKOUT
            made.ends = now + script.pending_seconds + (0.0 if is_quick else script.run_seconds)
        self.jobs[made.name] = made
        self.jobs_of_run.setdefault(run_id, []).append(made)
        self.touched[made] = None
        self._live.append(made)
        return made

    def get(self, name: str) -> JobRecord:
        return self._job(name).record_at(self._now())

    def list(self, parent: str, selection: str) -> tuple[JobRecord, ...]:
        labels, states = _parsed(selection)
        now = self._now()
        found: list[JobRecord] = []
        for job in self.jobs.values():
            if (
                not job.name.startswith(f"{parent}/")
                or job.listed_from > now
                or any(job.labels.get(key) not in values for key, values in labels.items())
            ):
                continue
            if not states or _name(job.state_at(now)) in states:
                found.append(job.record_at(now))
        return tuple(found)

    def cancel(self, name: str) -> Job | None:
        """Begin to cancel a job; return it unless that changes nothing."""
        job = self._job(name)
        if job.has_ended(self._now()) or job.cancelled is not None:
            return None
        job.cancelled = self._now()
        self.touched[job] = None
        return job

    def program_state(self, run_id: str) -> str | None:
        states = [job.program_state(self._now()) for job in self.jobs_of_run.get(run_id, ())]
        if "running" in states:
            return "running"
        return next((state for state in reversed(states) if state is not None), None)

    def stop_program(self, run_id: str) -> None:
        for job in self.jobs_of_run.get(run_id, ()):
            if not job.has_ended(self._now()):
                job.stopped = self._now()

    def live(self) -> list[Job]:
        now = self._now()
        # One that has ended stays so.
        self._live = [job for job in self._live if not job.has_ended(now)]
        return self._live

    def _job(self, name: str) -> Job:
        try:
            return self.jobs[name]
        except KeyError:
            raise NotFound(Problem(name, "there is no such job")) from None


def _name(state: JobState | int) -> str:
    return state.name if isinstance(state, JobState) else str(state)


def run_id_of(job: Any) -> str:
    for entry in type(job).pb(job).job_spec.worker_pool_specs[0].container_spec.env:
        if entry.name == "WANDB_RUN_ID":
            return entry.value
    raise AssertionError("a job without WANDB_RUN_ID")


@lru_cache(maxsize=256)
def _parsed(selection: str) -> tuple[dict[str, set[str]], frozenset[str]]:
    """Return the values that each label may have, and the states; none of these means any."""
    labels: dict[str, set[str]] = {}
    for key, value in re.findall(r'labels\.([a-z-]+)="([^"]*)"', selection):
        labels.setdefault(key, set()).add(value)
    return labels, frozenset(re.findall(r'state="([A-Z_]+)"', selection))


def keys_of(selection: str) -> set[str]:
    """Return the items that a list is about, by their label."""
    return _parsed(selection)[0].get("launch-item", set())


def _count_in(window: deque[float], now: float) -> int:
    window.append(now)
    while now - window[0] >= 60.0:
        window.popleft()
    return len(window)
