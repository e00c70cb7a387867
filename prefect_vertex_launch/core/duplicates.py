"""Which job speaks for an item, and which job is one too many.

Vertex AI's create takes no request id. When the answer to a create is lost, a second job of the same item may
come to light late. The jobs of one item are found by their label; these rules say what they mean together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prefect_vertex_launch.core.states import JobRecord, LaunchState


@dataclass(frozen=True, slots=True)
class Surplus:
    """A job that is one too many, and why."""

    job: JobRecord
    reason: str


def surplus(jobs: Iterable[JobRecord]) -> Surplus | None:
    """Return the job of one item that is to be cancelled first, or None if there is none too many.

    Of two live jobs of one attempt the younger one goes: the older one may have been seen already. Of two
    attempts the live job of the older attempt goes, whichever was created first. A newer attempt begins only
    after the older one was seen to end, so what lives of the older one is a duplicate that was found late.
    A job that is being cancelled is not cancelled again.
    """
    jobs = tuple(jobs)
    newest = _newest_attempt(jobs)
    live = sorted((job for job in jobs if not job.is_terminal), key=age)
    current = [job for job in live if job.attempt == newest]
    for job in reversed([job for job in live if job.attempt < newest]):
        if job.launch_state is not LaunchState.CANCELLING:
            return Surplus(job, f"it is left over from attempt {job.attempt}; this is attempt {newest}")
    for job in reversed(current[1:]):
        if job.launch_state is not LaunchState.CANCELLING:
            return Surplus(job, f"it duplicates the older job {current[0].name} of the same item")
    return None


def current_job(jobs: Iterable[JobRecord]) -> JobRecord | None:
    """Return the job of the newest attempt that speaks for one item, or None if there is no job.

    A live job speaks before one that has ended, so that a cancelled duplicate never speaks for its item. Of
    two that are alike in this, the older one speaks.
    """
    jobs = tuple(jobs)
    newest = _newest_attempt(jobs)
    current = [job for job in jobs if job.attempt == newest]
    return min(current, key=lambda job: (job.is_terminal, age(job)), default=None)


def age(job: JobRecord) -> tuple[float, int, str]:
    """Return a key that sorts jobs by when they were created, the oldest first."""
    created = job.create_time.timestamp() if job.create_time else float("inf")
    return (created, len(job.job_id), job.job_id)


def _newest_attempt(jobs: Iterable[JobRecord]) -> int:
    return max((job.attempt for job in jobs), default=1)
