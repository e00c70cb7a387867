"""Vertex AI's job service on this machine: its calls, one state for REST and gRPC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from prefect_vertex_launch.sandbox.faults.vertex_answers import JobFaults
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.vertex.filter import JobTest, parse_filter
from prefect_vertex_launch.sandbox.vertex.job_life import JobLife
from prefect_vertex_launch.sandbox.vertex.job_store import JobStore, StoredJob
from prefect_vertex_launch.sandbox.vertex.projects import ProjectNumbers
from prefect_vertex_launch.sandbox.vertex.refusal import failed_precondition, field_errors, invalid_argument
from prefect_vertex_launch.sandbox.vertex.replicas import ContainerHost
from prefect_vertex_launch.sandbox.vertex.validation import job_errors

_PAGE_CAP: Final = 100
# The protobuf messages behind the SDK's classes.
_RAW_JOB: Final = cast("Any", CustomJob).pb()
_RAW_LIST: Final = cast("Any", ListCustomJobsResponse).pb()
_SET_BY_SERVICE: Final = (
    "name", "state", "create_time", "start_time", "end_time", "update_time", "error", "web_access_uris",
)  # fmt: skip


class VertexBackend:
    """The job service's calls and rules.

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
        self.container_variables: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self._faults = JobFaults(faults or Faults())
        self._records = records
        self._projects = ProjectNumbers(project_numbers or {})
        self._store = JobStore(records, self._projects, is_manual=is_manual)
        self._life = JobLife(
            self._store,
            ContainerHost(images, buckets or {}, self.container_variables),
            workdir=workdir,
            queued_seconds=queued_seconds,
            pending_seconds=pending_seconds,
            grace_seconds=grace_seconds,
            is_manual=is_manual,
        )

    async def start(self) -> None:
        """Take up the jobs of an earlier sandbox where they are now."""
        self._store.load()
        self._life.take_up()

    async def aclose(self) -> None:
        """Stop moving jobs; end their processes unless the records outlive this sandbox."""
        await self._life.aclose()

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
        stored = self._store.add(parent, job)
        stored.hiding = self._faults.hiding(job, asked)
        self._store.move(stored, JobState.JOB_STATE_QUEUED)
        answer = _RAW_JOB()
        answer.CopyFrom(job)
        if switch := self._faults.state_from_birth(job, asked):
            self._hold(stored, switch)
        else:
            self._life.begin(stored)
        return answer

    def get(self, name: str) -> Any:
        """Return a job.

        Raises:
            VertexRefusal: 404, if there is none of this name.
        """
        self.calls["GetCustomJob"] += 1
        self._change("GetCustomJob", self._store.find(name), name)
        return self._faults.shown(self._store.find(name).job, name)

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
        for stored in self._store.below(parent, before):
            if (stored.hiding is not None and stored.hiding.counts_down()) or not matches(stored.job):
                continue
            if not is_first:
                is_first = True
                continue
            self._change("ListCustomJobs", stored, asked)
            if self._store.has(stored) and matches(stored.job):
                yield stored.job

    def cancel(self, name: str) -> None:
        """Ask for the end of a job; it is CANCELLING until its processes are gone. Idempotent.

        Raises:
            VertexRefusal: 404, if there is none of this name.
        """
        self.calls["CancelCustomJob"] += 1
        stored = self._store.find(name)
        if stored.is_terminal or stored.job.state == JobState.JOB_STATE_CANCELLING:
            return
        if self._change("CancelCustomJob", stored, name):
            self._store.find(name)
            return
        self._life.cancel(stored)

    def delete(self, name: str) -> Operation:
        """Forget a job that has ended, its files too; return the operation, which is done.

        Raises:
            VertexRefusal: 404 if there is none of this name, 400 if it has not ended.
        """
        self.calls["DeleteCustomJob"] += 1
        stored = self._store.find(name)
        if not stored.is_terminal:
            raise failed_precondition("The CustomJob is in a state that cannot be deleted; cancel it first.")
        name = stored.job.name
        self._life.forget(stored)
        operation = Operation(name=f"{name}/operations/{self._records.next_number('vertex_operation')}")
        operation.done = True
        operation.response.Pack(Empty())
        return operation

    def set_state(self, name: str, state: JobState, code: int = 0, message: str = "") -> None:
        """Put a job into a state, for tests of what this machine cannot bring about by itself.

        From then on only `cancel` and `set_state` move it; the processes of a job put into a terminal
        state are ended. A job that Vertex AI restarts goes from RUNNING to PENDING and back.
        """
        self._life.put(self._store.find(name), state, code, message)

    def let_go(self, switch: Switch) -> None:
        """Let the jobs that a fault holds in a state go on from there, unless they have ended."""
        self._life.let_go(switch)

    def log(self, name: str) -> str:
        """Return what the replicas of a job have written so far, workerpool0-0 first.

        Raises:
            VertexRefusal: 404, if there is no job of this name.
        """
        paths = [replica.directory / "log" for replica in self._store.find(name).replicas]
        return "".join(path.read_text(errors="replace") for path in paths)

    def _change(self, operation: str, stored: StoredJob, asked: str) -> bool:
        """Let a job have the fault that a call about it meets; tell whether there was one."""
        switch = self._faults.change(operation, stored.job, asked)
        if switch is None:
            return False
        if switch.fault.what is What.STATE:
            self._hold(stored, switch)
        else:
            self._life.lose(stored)
        return True

    def _hold(self, stored: StoredJob, switch: Switch) -> None:
        fault = switch.fault
        code = Code.Value(fault.code) if fault.code else 0
        self._life.put(stored, fault.state_number, code, fault.message or "", holder=switch)


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
