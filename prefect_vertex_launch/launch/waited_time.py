"""How long a launch has waited: for quota before there is a job, and with a job until it starts.

A duration comes from one clock. Here that is our own, and no other machine's time is subtracted from it:
with a clock that is hours ahead a job would be ended that has just been created. A process that hands a
launch over notes what it has waited, and the next one goes on from there. A crash loses what was not noted.
"""

from __future__ import annotations

from datetime import timedelta

from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.states import JobRecord


class WaitedTime:
    """The waits of a launch's current attempt, in seconds.

    `for_quota_seconds` is without the waits for a slot. `before_seconds` is what an earlier process has
    waited: with the job that the launch has, if it `has_job`.
    """

    def __init__(self, clock: Clock, before_seconds: float, has_job: bool) -> None:
        self.for_quota_seconds = 0.0 if has_job else before_seconds
        self.before_seconds = before_seconds if has_job else 0.0
        self._clock = clock
        self._seen_at: dict[str, float] = {}

    def start_over(self) -> None:
        """Count anew, for the next attempt."""
        self.for_quota_seconds = self.before_seconds = 0.0

    def see(self, job: JobRecord) -> None:
        """Count from now on how long this process knows a job, unless it knows it already."""
        self._seen_at.setdefault(job.name, self._clock.monotonic())

    def known_seconds(self, job: JobRecord) -> float:
        """Return how long a job has existed at the least."""
        self.see(job)
        here = self._clock.monotonic() - self._seen_at[job.name]
        # By Google's own clock: what has happened to it since it was created.
        last = max((moment for moment in (job.update_time, job.end_time) if moment), default=job.create_time)
        there = last - job.create_time if last and job.create_time else timedelta()
        return max(self.before_seconds + here, there.total_seconds())

    def noted_seconds(self, job: JobRecord | None) -> float:
        """Return what a next process has to know."""
        return self.for_quota_seconds if job is None else self.known_seconds(job)
