"""Faults in what Vertex AI's answers mean: the jobs that a call is about, as the faults show them."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.sandbox.faults.kinds import What
from prefect_vertex_launch.sandbox.faults.registry import Faults, Switch

_CHANGES: Final = frozenset({What.STATE, What.DELETED})
_ROWS: Final = frozenset({What.STALE, What.OMITTED, What.DOUBLED})


@dataclass(slots=True)
class Hiding:
    """How long a new job stays out of the lists: for a number of them, or until a moment of this clock."""

    lists: int
    until: float

    @classmethod
    def of(cls, switch: Switch) -> Hiding:
        """Return what a fault says, counted from now."""
        fault = switch.fault
        return cls(fault.lists or 0, time.monotonic() + (fault.seconds or 0.0))

    def counts_down(self) -> bool:
        """Tell whether a list has to leave the job out, and count that list."""
        self.lists -= 1
        return self.lists >= 0 or time.monotonic() < self.until


class JobFaults:
    """What the faults have to say to the job service about its jobs.

    `asked` is the job or the parent as a request names it: by the project's id, where a job's name has its
    number.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def hiding(self, job: Any, asked: str) -> Hiding | None:
        """Return how a job that is created now is kept out of lists, if it is."""
        switch = self._take("CreateCustomJob", {What.HIDDEN}, job, asked)
        return None if switch is None else Hiding.of(switch)

    def change(self, operation: str, job: Any, asked: str) -> Switch | None:
        """Return the fault that moves or deletes the job that a call is about."""
        return self._take(operation, _CHANGES, job, asked)

    def state_from_birth(self, job: Any, asked: str) -> Switch | None:
        """Return the fault that says what becomes of a job which is created now."""
        return self._take("CreateCustomJob", {What.STATE}, job, asked)

    def shown(self, job: Any, asked: str) -> Any:
        """Return a job as a GET shows it."""
        return _as_created(job) if self._take("GetCustomJob", {What.STALE}, job, asked) else job

    def rows(self, job: Any, asked: str) -> list[Any]:
        """Return the rows that a list shows of a job: mostly one, itself."""
        switch = self._take("ListCustomJobs", _ROWS, job, asked)
        if switch is None:
            return [job]
        if switch.fault.what is What.STALE:
            return [_as_created(job)]
        return [] if switch.fault.what is What.OMITTED else [job, job]

    def drifts(self, parent: str, asked: str) -> bool:
        """Tell whether a page that is not the first begins one row late."""
        return self._faults.take("vertex", {What.PAGE_DRIFT}, {"ListCustomJobs"}, [parent, asked]) is not None

    def _take(self, operation: str, kinds: Collection[What], job: Any, asked: str) -> Switch | None:
        if not self._faults.are_on("vertex"):
            return None
        texts = [asked, job.name, job.display_name, *job.labels.values()]
        return self._faults.take("vertex", kinds, {operation}, texts)


def _as_created(job: Any) -> Any:
    """Return what a reader saw who read the job when it had just been created."""
    old = type(job)()
    old.CopyFrom(job)
    old.state = JobState.JOB_STATE_QUEUED.value
    old.update_time.CopyFrom(job.create_time)
    for name in ("start_time", "end_time", "error"):
        old.ClearField(name)
    return old
