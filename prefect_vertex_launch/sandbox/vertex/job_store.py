"""The custom jobs that there are, in memory and in the sandbox's records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

from google.protobuf import json_format
from google.rpc.code_pb2 import Code

from prefect_vertex_launch.core.vertex_types import CustomJob, JobState
from prefect_vertex_launch.sandbox.faults.registry import Switch
from prefect_vertex_launch.sandbox.faults.vertex_answers import Hiding
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.vertex.projects import ProjectNumbers
from prefect_vertex_launch.sandbox.vertex.refusal import not_found
from prefect_vertex_launch.sandbox.vertex.replicas import Replica

_KIND: Final = "vertex_job"
_FIRST_JOB_ID: Final = 4_611_686_018_427_387_904  # as long as Vertex AI's own
# The protobuf message behind the SDK's class.
_RAW_JOB: Final = cast("Any", CustomJob).pb()
_TERMINAL: Final = frozenset({
    JobState.JOB_STATE_SUCCEEDED.value,
    JobState.JOB_STATE_FAILED.value,
    JobState.JOB_STATE_CANCELLED.value,
    JobState.JOB_STATE_EXPIRED.value,
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED.value,
})  # fmt: skip


@dataclass(slots=True)
class StoredJob:
    """A job with its processes.

    `is_held` says that a test has set its state and nothing else moves it; `holder` is the fault that did.
    """

    job: Any
    replicas: list[Replica] = field(default_factory=list[Replica])
    is_held: bool = False
    task: asyncio.Task[None] | None = None
    holder: Switch | None = None
    hiding: Hiding | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.job.state in _TERMINAL


class JobStore:
    """The jobs by name, oldest first.

    Each change of a job's state is written to the records. With `is_manual` every job is held.
    """

    def __init__(self, records: Records, projects: ProjectNumbers, *, is_manual: bool) -> None:
        self.outlives_the_process = records.outlive_the_process
        self._records = records
        self._projects = projects
        self._is_manual = is_manual
        self._jobs: dict[str, StoredJob] = {}

    def load(self) -> None:
        """Read the jobs of an earlier sandbox."""
        for name, record in self._records.all(_KIND):
            job = json_format.ParseDict(record["job"], _RAW_JOB())
            replicas = [Replica.from_json(replica) for replica in record["replicas"]]
            self._jobs[name] = StoredJob(job, replicas, record["is_held"])

    def add(self, parent: str, job: Any) -> StoredJob:
        """Take in a new job and give it its name; it is written when it gets its first state."""
        job.name = f"{parent}/customJobs/{_FIRST_JOB_ID + self._records.next_number(_KIND)}"
        job.create_time.GetCurrentTime()
        stored = self._jobs[job.name] = StoredJob(job, is_held=self._is_manual)
        return stored

    def find(self, name: str) -> StoredJob:
        """Return a job by its name, with the project's id or number.

        Raises:
            VertexRefusal: 404, if there is none of this name.
        """
        parent, _, job_id = name.partition("/customJobs/")
        stored = self._jobs.get(f"{self._projects.numbered(parent)}/customJobs/{job_id}")
        if stored is None:
            raise not_found(f"The CustomJob does not exist: {name}")
        return stored

    def has(self, stored: StoredJob) -> bool:
        """Tell whether a job is still there."""
        return stored.job.name in self._jobs

    def all(self) -> tuple[StoredJob, ...]:
        """Return every job, oldest first."""
        return tuple(self._jobs.values())

    def below(self, parent: str, before: int | None) -> Iterator[StoredJob]:
        """Yield the jobs of a location, newest first, with ids below `before` if it is given."""
        for stored in reversed(self.all()):
            job_parent, _, job_id = stored.job.name.rpartition("/customJobs/")
            if job_parent == parent and (before is None or int(job_id) < before):
                yield stored

    def move(self, stored: StoredJob, state: int, code: int = 0, message: str = "") -> None:
        """Put a job into a state, as an error if there is a code."""
        job = stored.job
        job.state = int(state)
        job.update_time.GetCurrentTime()
        if state == JobState.JOB_STATE_RUNNING and not job.HasField("start_time"):
            job.start_time.CopyFrom(job.update_time)
        if stored.is_terminal:
            job.end_time.CopyFrom(job.update_time)
        job.ClearField("error")
        if code:
            job.error.code, job.error.message = code, message
        self._records.put(
            _KIND,
            job.name,
            {
                "job": json_format.MessageToDict(job),
                "replicas": [replica.to_json() for replica in stored.replicas],
                # Faults end with the sandbox.
                "is_held": self._is_manual or (stored.is_held and stored.holder is None),
            },
        )

    def fail(self, stored: StoredJob, error: BaseException) -> None:
        """Let a job fail by an error of the sandbox's own, as Vertex AI does by one of its own."""
        message = f"Internal error occurred for the current attempt: {error}"
        self.move(stored, JobState.JOB_STATE_FAILED, Code.INTERNAL, message)

    def forget(self, stored: StoredJob) -> None:
        """Remove a job, from the records too."""
        del self._jobs[stored.job.name]
        self._records.delete(_KIND, stored.job.name)
