"""Vertex AI's CustomJobs on this machine: one store for REST and gRPC, states that move, local processes."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from google.longrunning.operations_pb2 import Operation  # pyright: ignore[reportMissingTypeStubs]  # it has none
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.code_pb2 import Code

from prefect_vertex_launch.core.vertex_types import CustomJob, JobState, ListCustomJobsResponse
from prefect_vertex_launch.sandbox.faults.kinds import What
from prefect_vertex_launch.sandbox.faults.registry import Faults, Switch
from prefect_vertex_launch.sandbox.faults.vertex_answers import Hiding, JobFaults
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.vertex.filter import JobTest, parse_filter
from prefect_vertex_launch.sandbox.vertex.packages import PackageError
from prefect_vertex_launch.sandbox.vertex.projects import ProjectNumbers
from prefect_vertex_launch.sandbox.vertex.refusal import (
    failed_precondition,
    field_errors,
    invalid_argument,
    not_found,
)
from prefect_vertex_launch.sandbox.vertex.replicas import (
    KILLED,
    ContainerHost,
    ImagePullError,
    Replica,
    end_replicas,
    start_replicas,
    wait_for,
)
from prefect_vertex_launch.sandbox.vertex.validation import job_errors

_logger = logging.getLogger(__name__)
_KIND: Final = "vertex_job"
_PAGE_CAP: Final = 100
_FIRST_JOB_ID: Final = 4_611_686_018_427_387_904  # as long as Vertex AI's own
# The protobuf messages behind the SDK's classes.
_RAW_JOB: Final = cast("Any", CustomJob).pb()
_RAW_LIST: Final = cast("Any", ListCustomJobsResponse).pb()
_TERMINAL: Final = frozenset({
    JobState.JOB_STATE_SUCCEEDED.value,
    JobState.JOB_STATE_FAILED.value,
    JobState.JOB_STATE_CANCELLED.value,
    JobState.JOB_STATE_EXPIRED.value,
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED.value,
})  # fmt: skip
_SET_BY_SERVICE: Final = (
    "name", "state", "create_time", "start_time", "end_time", "update_time", "error", "web_access_uris",
)  # fmt: skip


@dataclass(slots=True)
class _Entry:
    """A job with its processes.

    `is_held` marks one whose state a test has set and nothing else moves, `holder` the fault that did.
    """

    job: Any
    replicas: list[Replica] = field(default_factory=list[Replica])
    is_held: bool = False
    task: asyncio.Task[None] | None = None
    holder: Switch | None = None
    hiding: Hiding | None = None

    @property
    def is_terminal(self) -> bool:
        return self.job.state in _TERMINAL


class VertexBackend:
    """The job service's state and rules.

    `images` maps the name of a container image, with or without tag, to its entrypoint. A job is QUEUED
    for `queued_seconds`, then PENDING for `pending_seconds`, then its processes run below `workdir`.
    `grace_seconds` lie between SIGTERM and SIGKILL. With `is_manual` jobs stay QUEUED, and nothing moves
    them but `set_state` and `cancel`. `calls` counts the calls by their RPC's name.
    `buckets` are the directories from which Python packages are taken, by the name of the bucket that
    each stands for; `container_variables` are in the environment of every container.

    As at Vertex AI, requests may name a project by id or by number, and answers name it by number:
    `project_numbers` has those of chosen ids, any other id has one that depends on nothing but the id.

    If `records` are in a file, jobs survive the sandbox: `aclose` leaves their processes alone and
    `start` finds them again. Otherwise `aclose` ends them.
    """

    def __init__(
        self,
        records: Records,
        *,
        workdir: Path,
        images: Mapping[str, Sequence[str]],
        queued_seconds: float = 0.2,
        pending_seconds: float = 0.3,
        grace_seconds: float = 5.0,
        is_manual: bool = False,
        project_numbers: Mapping[str, str] | None = None,
        buckets: Mapping[str, Path] | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._faults = JobFaults(faults or Faults())
        self._records = records
        self._workdir = workdir.absolute()
        self._images = images
        self._buckets = buckets or {}
        self._queued_seconds = queued_seconds
        self._pending_seconds = pending_seconds
        self._grace_seconds = grace_seconds
        self._is_manual = is_manual
        self._projects = ProjectNumbers(project_numbers or {})
        self._entries: dict[str, _Entry] = {}
        self.container_variables: dict[str, str] = {}
        self.calls: Counter[str] = Counter()

    async def start(self) -> None:
        """Take up the jobs of an earlier sandbox where they are now."""
        for name, record in self._records.all(_KIND):
            job = json_format.ParseDict(record["job"], _RAW_JOB())
            replicas = [Replica.from_json(replica) for replica in record["replicas"]]
            entry = self._entries[name] = _Entry(job, replicas, record["is_held"])
            if job.state == JobState.JOB_STATE_CANCELLING:
                self._begin(entry, self._finish_cancelling(entry))
            elif not entry.is_terminal and not entry.is_held:
                self._begin(entry, self._drive(entry))

    async def aclose(self) -> None:
        """Stop moving jobs; end their processes unless the records outlive this sandbox."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        replicas = [
            replica
            for entry in self._entries.values()
            if entry.is_terminal or not self._records.outlive_the_process
            for replica in entry.replicas
        ]
        await end_replicas(replicas, grace_seconds=self._grace_seconds)

    def create(self, parent: str, custom_job: Any) -> Any:
        """Store a new job and start moving it; return it as Vertex AI answers, QUEUED and with a name.

        Raises:
            VertexRefusal: 400, with every field error of the job.
        """
        self.calls["CreateCustomJob"] += 1
        asked, parent = parent, self._projects.numbered(parent)
        if errors := job_errors(custom_job):
            raise field_errors(errors)
        job = _RAW_JOB()
        job.CopyFrom(custom_job)
        for name in _SET_BY_SERVICE:
            job.ClearField(name)
        try:
            json_format.MessageToDict(job)
        except json_format.SerializeToJsonError as error:
            # A duration out of range, which only gRPC can carry.
            raise invalid_argument(f"Request contains an invalid argument: {error}") from error
        job.name = f"{parent}/customJobs/{_FIRST_JOB_ID + self._records.next_number(_KIND)}"
        job.create_time.GetCurrentTime()
        entry = self._entries[job.name] = _Entry(job, is_held=self._is_manual)
        entry.hiding = self._faults.hiding(job, asked)
        self._move(entry, JobState.JOB_STATE_QUEUED)
        answer = _RAW_JOB()
        answer.CopyFrom(job)
        if switch := self._faults.state_from_birth(job, asked):
            self._hold(entry, switch)
        elif not self._is_manual:
            self._begin(entry, self._drive(entry))
        return answer

    def get(self, name: str) -> Any:
        """Return a job.

        Raises:
            VertexRefusal: 404, if there is none of this name.
        """
        self.calls["GetCustomJob"] += 1
        entry = self._entry(name)
        self._change("GetCustomJob", entry, name)
        return self._faults.shown(self._entry(name).job, name)

    def list(
        self,
        parent: str,
        filter: str = "",  # noqa: A002  # the name of the field in ListCustomJobsRequest
        page_size: int = 0,
        page_token: str = "",
        read_mask: FieldMask | None = None,
    ) -> Any:
        """Return a page of a location's jobs, newest first, at most 100, as ListCustomJobsResponse.

        Raises:
            VertexRefusal: 400, for a filter, page size, page token or read mask that cannot be used.
        """
        self.calls["ListCustomJobs"] += 1
        matches = parse_filter(filter)
        mask = _checked_mask(read_mask)
        if page_size < 0:
            raise invalid_argument("Page size must not be negative.")
        # A token is the id of the last job shown, so that jobs created meanwhile shift nothing.
        if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 20):
            raise invalid_argument("The page token is invalid.")
        before = int(page_token) if page_token else None
        page_size = min(page_size or _PAGE_CAP, _PAGE_CAP)
        response = _RAW_LIST()
        last_id = ""
        for job in self._matching(parent, matches, before):
            # A fault may show a job twice, so a page may be one longer.
            if len(response.custom_jobs) >= page_size:
                response.next_page_token = last_id
                break
            for row in self._faults.rows(job, parent):
                _add_masked(response.custom_jobs, row, mask)
            last_id = job.name.rpartition("/")[2]
        return response

    def _matching(self, parent: str, matches: JobTest, before: int | None) -> Iterator[Any]:
        """Yield the jobs of a location that a filter passes, newest first, from below an id on."""
        asked, parent = parent, self._projects.numbered(parent)
        is_first = before is None or not self._faults.drifts(parent, asked)
        for entry in tuple(reversed(self._entries.values())):
            job_parent, _, job_id = entry.job.name.rpartition("/customJobs/")
            if job_parent != parent or (before is not None and int(job_id) >= before):
                continue
            if (entry.hiding is not None and entry.hiding.counts_down()) or not matches(entry.job):
                continue
            if not is_first:
                is_first = True
                continue
            self._change("ListCustomJobs", entry, asked)
            if entry.job.name in self._entries and matches(entry.job):
                yield entry.job

    def cancel(self, name: str) -> None:
        """Ask for the end of a job; it is CANCELLING until its processes are gone. Idempotent.

        Raises:
            VertexRefusal: 404, if there is none of this name.
        """
        self.calls["CancelCustomJob"] += 1
        entry = self._entry(name)
        if entry.is_terminal or entry.job.state == JobState.JOB_STATE_CANCELLING:
            return
        if self._change("CancelCustomJob", entry, name):
            self._entry(name)
            return
        self._stop(entry)
        self._move(entry, JobState.JOB_STATE_CANCELLING)
        self._begin(entry, self._finish_cancelling(entry))

    def delete(self, name: str) -> Operation:
        """Forget a job that has ended, its files too; return the operation, which is done.

        Raises:
            VertexRefusal: 404 if there is none of this name, 400 if it has not ended.
        """
        self.calls["DeleteCustomJob"] += 1
        entry = self._entry(name)
        if not entry.is_terminal:
            raise failed_precondition("The CustomJob is in a state that cannot be deleted; cancel it first.")
        name = entry.job.name
        self._forget(entry)
        operation = Operation(name=f"{name}/operations/{self._records.next_number('vertex_operation')}")
        operation.done = True
        operation.response.Pack(Empty())
        return operation

    def set_state(self, name: str, state: JobState, code: int = 0, message: str = "") -> None:
        """Put a job into a state, for tests of what this machine cannot bring about by itself.

        From then on only `cancel` and `set_state` move it; the processes of a job put into a terminal
        state are ended. A job that Vertex AI restarts goes from RUNNING to PENDING and back.
        """
        self._put(self._entry(name), state, code, message)

    def let_go(self, switch: Switch) -> None:
        """Let the jobs that a fault holds in a state go on from there, unless they have ended."""
        for entry in self._entries.values():
            if entry.holder is not switch:
                continue
            entry.holder, entry.is_held = None, self._is_manual
            if entry.job.state == JobState.JOB_STATE_CANCELLING:
                self._begin(entry, self._finish_cancelling(entry))
            elif not entry.is_terminal and not self._is_manual:
                self._begin(entry, self._drive(entry))

    def _change(self, operation: str, entry: _Entry, asked: str) -> bool:
        """Do to a job what a fault wants of a call that is about it; tell whether there was one."""
        switch = self._faults.change(operation, entry.job, asked)
        if switch is None:
            return False
        if switch.fault.what is What.STATE:
            self._hold(entry, switch)
        else:
            self._stop(entry)
            self._forget(entry)
            self._begin(entry, end_replicas(entry.replicas, grace_seconds=self._grace_seconds))
        return True

    def _hold(self, entry: _Entry, switch: Switch) -> None:
        fault = switch.fault
        code = Code.Value(fault.code) if fault.code else 0
        self._put(entry, fault.state_number, code, fault.message or "", holder=switch)

    def _forget(self, entry: _Entry) -> None:
        del self._entries[entry.job.name]
        self._records.delete(_KIND, entry.job.name)
        shutil.rmtree(self._directory(entry), ignore_errors=True)

    def _put(
        self, entry: _Entry, state: int, code: int, message: str, *, holder: Switch | None = None
    ) -> None:
        self._stop(entry)
        entry.is_held, entry.holder = True, holder
        self._move(entry, state, code, message)
        if entry.is_terminal:
            self._begin(entry, end_replicas(entry.replicas, grace_seconds=self._grace_seconds))

    def log(self, name: str) -> str:
        """Return what the replicas of a job have written so far, workerpool0-0 first.

        Raises:
            VertexRefusal: 404, if there is no job of this name.
        """
        paths = [replica.directory / "log" for replica in self._entry(name).replicas]
        return "".join(path.read_text(errors="replace") for path in paths)

    def _entry(self, name: str) -> _Entry:
        parent, _, job_id = name.partition("/customJobs/")
        entry = self._entries.get(f"{self._projects.numbered(parent)}/customJobs/{job_id}")
        if entry is None:
            raise not_found(f"The CustomJob does not exist: {name}")
        return entry

    def _directory(self, entry: _Entry) -> Path:
        return self._workdir / entry.job.name.rpartition("/")[2]

    def _begin(self, entry: _Entry, work: Coroutine[Any, Any, None]) -> None:
        entry.task = asyncio.get_running_loop().create_task(work)
        entry.task.add_done_callback(partial(self._look_at_end, entry))

    def _look_at_end(self, entry: _Entry, task: asyncio.Task[None]) -> None:
        """Let a job fail whose moving has failed, which nobody waits for."""
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        _logger.error("A job of the Vertex AI sandbox failed", exc_info=error)
        if entry.task is task and not entry.is_terminal and entry.job.name in self._entries:
            self._move(entry, JobState.JOB_STATE_FAILED, Code.INTERNAL, _internal(error))
            self._begin(entry, end_replicas(entry.replicas, grace_seconds=self._grace_seconds))

    def _stop(self, entry: _Entry) -> None:
        if entry.task is not None:
            entry.task.cancel()
            entry.task = None

    def _move(self, entry: _Entry, state: int, code: int = 0, message: str = "") -> None:
        job = entry.job
        job.state = int(state)
        job.update_time.GetCurrentTime()
        if state == JobState.JOB_STATE_RUNNING and not job.HasField("start_time"):
            job.start_time.CopyFrom(job.update_time)
        if entry.is_terminal:
            job.end_time.CopyFrom(job.update_time)
        job.ClearField("error")
        if code:
            job.error.code, job.error.message = code, message
        self._records.put(
            _KIND,
            job.name,
            {
                "job": json_format.MessageToDict(job),
                "replicas": [replica.to_json() for replica in entry.replicas],
                # Faults end with the sandbox.
                "is_held": self._is_manual or (entry.is_held and entry.holder is None),
            },
        )

    async def _drive(self, entry: _Entry) -> None:
        if entry.job.state == JobState.JOB_STATE_QUEUED:
            await asyncio.sleep(self._queued_seconds)
            self._move(entry, JobState.JOB_STATE_PENDING)
        if entry.job.state == JobState.JOB_STATE_PENDING or not entry.replicas:
            await asyncio.sleep(self._pending_seconds)
            # Those of a job that is restarted.
            await end_replicas(entry.replicas, grace_seconds=self._grace_seconds)
            if not await self._started(entry):
                return
        elif entry.job.state != JobState.JOB_STATE_RUNNING:
            self._move(entry, JobState.JOB_STATE_RUNNING)
        timeout = entry.job.job_spec.scheduling.timeout
        timeout_seconds = timeout.seconds + timeout.nanos / 1e9
        started = entry.job.start_time.ToNanoseconds() / 1e9
        ended = await wait_for(
            entry.replicas[:1], until=started + timeout_seconds if timeout_seconds else None
        )
        exit_code = entry.replicas[0].poll()
        await end_replicas(entry.replicas, grace_seconds=self._grace_seconds)
        if ended and exit_code is not None:
            self._finish(entry, exit_code)
        else:
            message = f"The job timed out: it has run for its timeout of {timeout_seconds:g} seconds."
            self._move(entry, JobState.JOB_STATE_FAILED, Code.DEADLINE_EXCEEDED, message)

    async def _started(self, entry: _Entry) -> bool:
        directory = self._directory(entry)
        # What a sandbox that ended in the middle of starting the job may have left.
        shutil.rmtree(directory, ignore_errors=True)
        try:
            host = ContainerHost(self._images, self._buckets, self.container_variables)
            entry.replicas = await start_replicas(entry.job, directory, host)
        except (ImagePullError, PackageError) as error:
            self._move(entry, JobState.JOB_STATE_FAILED, Code.INVALID_ARGUMENT, str(error))
        except (OSError, ValueError) as error:  # no more processes, a null byte in an argument
            self._move(entry, JobState.JOB_STATE_FAILED, Code.INTERNAL, _internal(error))
        else:
            self._move(entry, JobState.JOB_STATE_RUNNING)
            return True
        return False

    def _finish(self, entry: _Entry, exit_code: int) -> None:
        replica = entry.replicas[0].name
        if exit_code == 0:
            self._move(entry, JobState.JOB_STATE_SUCCEEDED)
            return
        if exit_code == KILLED:
            code = Code.RESOURCE_EXHAUSTED
            message = (
                f"The replica {replica} ran out of memory and exited with a non-zero status of 9(SIGKILL)."
            )
        else:
            code = Code.INVALID_ARGUMENT
            message = (
                f"The replica {replica} exited with a non-zero status of {exit_code}."
                " Termination reason: Error."
            )
        self._move(entry, JobState.JOB_STATE_FAILED, code, message)

    async def _finish_cancelling(self, entry: _Entry) -> None:
        exit_code = entry.replicas[0].poll() if entry.replicas else None
        started = time.monotonic()
        await end_replicas(entry.replicas, grace_seconds=self._grace_seconds)
        if exit_code is not None:  # it had ended before anybody could cancel it
            self._finish(entry, exit_code)
            return
        # Whoever looks after `cancel` has answered sees CANCELLING first, as at Vertex AI.
        await asyncio.sleep(max(0.0, self._pending_seconds - (time.monotonic() - started)))
        self._move(entry, JobState.JOB_STATE_CANCELLED, Code.CANCELLED, "CANCELED")


def _internal(error: BaseException) -> str:
    return f"Internal error occurred for the current attempt: {error}"


def _checked_mask(read_mask: FieldMask | None) -> FieldMask | None:
    if read_mask is None or not read_mask.paths or "*" in read_mask.paths:
        return None
    if not read_mask.IsValidForDescriptor(_RAW_JOB.DESCRIPTOR):
        raise invalid_argument(f"Invalid read mask: {', '.join(read_mask.paths)}")
    return read_mask


def _add_masked(page: Any, job: Any, mask: FieldMask | None) -> None:
    added = page.add()
    if mask is None:
        added.CopyFrom(job)
    else:
        mask.MergeMessage(job, added)
