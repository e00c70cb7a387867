"""A job's life: how it moves from state to state, and when its processes start and end."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from google.rpc.code_pb2 import Code

from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.sandbox.faults.registry import Switch
from prefect_vertex_launch.sandbox.private_files import PRIVATE_DIRECTORY
from prefect_vertex_launch.sandbox.vertex.job_store import JobStore, StoredJob
from prefect_vertex_launch.sandbox.vertex.packages import PackageError
from prefect_vertex_launch.sandbox.vertex.replicas import (
    KILLED,
    ContainerHost,
    ImagePullError,
    end_replicas,
    start_replicas,
    wait_for,
)

_logger = logging.getLogger(__name__)


class JobLife:
    """Moves the jobs of a store, each in a task of its own.

    A job is QUEUED for `queued_seconds`, then PENDING for `pending_seconds`, then its processes run on
    `host`, below `workdir`. `grace_seconds` lie between SIGTERM and SIGKILL. With `is_manual` nothing moves
    a job but `put` and `cancel`.
    """

    def __init__(
        self,
        store: JobStore,
        host: ContainerHost,
        *,
        workdir: Path,
        queued_seconds: float,
        pending_seconds: float,
        grace_seconds: float,
        is_manual: bool,
    ) -> None:
        self._store = store
        self._host = host
        self._workdir = workdir.absolute()
        self._queued_seconds = queued_seconds
        self._pending_seconds = pending_seconds
        self._grace_seconds = grace_seconds
        self._is_manual = is_manual

    def take_up(self) -> None:
        """Go on with the jobs of an earlier sandbox where they are now."""
        for stored in self._store.all():
            if stored.job.state == JobState.JOB_STATE_CANCELLING:
                self._begin(stored, self._finish_cancelling(stored))
            elif not stored.is_terminal and not stored.is_held:
                self._begin(stored, self._drive(stored))

    async def aclose(self) -> None:
        """Stop moving jobs; end their processes unless the records outlive this sandbox."""
        tasks = [stored.task for stored in self._store.all() if stored.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        replicas = [
            replica
            for stored in self._store.all()
            if stored.is_terminal or not self._store.outlives_the_process
            for replica in stored.replicas
        ]
        await end_replicas(replicas, grace_seconds=self._grace_seconds)

    def begin(self, stored: StoredJob) -> None:
        """Start moving a new job."""
        if not self._is_manual:
            self._begin(stored, self._drive(stored))

    def put(
        self, stored: StoredJob, state: int, code: int, message: str, *, holder: Switch | None = None
    ) -> None:
        """Put a job into a state and leave it there; `holder` is the fault that does so."""
        self._stop(stored)
        stored.is_held, stored.holder = True, holder
        self._store.move(stored, state, code, message)
        if stored.is_terminal:
            self._begin(stored, self._end_processes(stored))

    def let_go(self, switch: Switch) -> None:
        """Let the jobs that a fault holds in a state go on from there, unless they have ended."""
        for stored in self._store.all():
            if stored.holder is not switch:
                continue
            stored.holder, stored.is_held = None, self._is_manual
            if stored.job.state == JobState.JOB_STATE_CANCELLING:
                self._begin(stored, self._finish_cancelling(stored))
            elif not stored.is_terminal and not self._is_manual:
                self._begin(stored, self._drive(stored))

    def cancel(self, stored: StoredJob) -> None:
        """Begin to end a job; it is CANCELLING until its processes are gone."""
        self._stop(stored)
        self._store.move(stored, JobState.JOB_STATE_CANCELLING)
        self._begin(stored, self._finish_cancelling(stored))

    def lose(self, stored: StoredJob) -> None:
        """Remove a job with everything of it while it may still run."""
        self._stop(stored)
        self.forget(stored)
        self._begin(stored, self._end_processes(stored))

    def forget(self, stored: StoredJob) -> None:
        """Remove a job that has ended, and its files."""
        self._store.forget(stored)
        shutil.rmtree(self._directory(stored), ignore_errors=True)

    def _directory(self, stored: StoredJob) -> Path:
        return self._workdir / stored.job.name.rpartition("/")[2]

    def _begin(self, stored: StoredJob, work: Coroutine[Any, Any, None]) -> None:
        stored.task = asyncio.get_running_loop().create_task(work)
        stored.task.add_done_callback(partial(self._look_at_end, stored))

    def _look_at_end(self, stored: StoredJob, task: asyncio.Task[None]) -> None:
        """Let a job fail if its task has failed: nobody awaits the task."""
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        _logger.error("A job of the Vertex AI sandbox failed", exc_info=error)
        if stored.task is task and not stored.is_terminal and self._store.has(stored):
            self._store.fail(stored, error)
            self._begin(stored, self._end_processes(stored))

    def _stop(self, stored: StoredJob) -> None:
        if stored.task is not None:
            stored.task.cancel()
            stored.task = None

    async def _end_processes(self, stored: StoredJob) -> None:
        await end_replicas(stored.replicas, grace_seconds=self._grace_seconds)

    async def _drive(self, stored: StoredJob) -> None:
        if stored.job.state == JobState.JOB_STATE_QUEUED:
            await asyncio.sleep(self._queued_seconds)
            self._store.move(stored, JobState.JOB_STATE_PENDING)
        if stored.job.state == JobState.JOB_STATE_PENDING or not stored.replicas:
            await asyncio.sleep(self._pending_seconds)
            # Those of a job that is restarted.
            await self._end_processes(stored)
            if not await self._started(stored):
                return
        elif stored.job.state != JobState.JOB_STATE_RUNNING:
            self._store.move(stored, JobState.JOB_STATE_RUNNING)
        timeout = stored.job.job_spec.scheduling.timeout
        timeout_seconds = timeout.seconds + timeout.nanos / 1e9
        started = stored.job.start_time.ToNanoseconds() / 1e9
        ended = await wait_for(
            stored.replicas[:1], until=started + timeout_seconds if timeout_seconds else None
        )
        exit_code = stored.replicas[0].poll()
        await self._end_processes(stored)
        if ended and exit_code is not None:
            self._finish(stored, exit_code)
        else:
            message = f"The job timed out: it has run for its timeout of {timeout_seconds:g} seconds."
            self._store.move(stored, JobState.JOB_STATE_FAILED, Code.DEADLINE_EXCEEDED, message)

    async def _started(self, stored: StoredJob) -> bool:
        directory = self._directory(stored)
        # A sandbox that ended while it started the job may have left files here.
        shutil.rmtree(directory, ignore_errors=True)
        try:
            self._workdir.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            directory.mkdir(mode=PRIVATE_DIRECTORY)
            stored.replicas = await start_replicas(stored.job, directory, self._host)
        except (ImagePullError, PackageError) as error:
            self._store.move(stored, JobState.JOB_STATE_FAILED, Code.INVALID_ARGUMENT, str(error))
        except (OSError, ValueError) as error:  # no more processes, a null byte in an argument
            self._store.fail(stored, error)
        else:
            self._store.move(stored, JobState.JOB_STATE_RUNNING)
            return True
        return False

    def _finish(self, stored: StoredJob, exit_code: int) -> None:
        replica = stored.replicas[0].name
        if exit_code == 0:
            self._store.move(stored, JobState.JOB_STATE_SUCCEEDED)
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
        self._store.move(stored, JobState.JOB_STATE_FAILED, code, message)

    async def _finish_cancelling(self, stored: StoredJob) -> None:
        exit_code = stored.replicas[0].poll() if stored.replicas else None
        started = time.monotonic()
        await self._end_processes(stored)
        if exit_code is not None:  # it had ended before anybody could cancel it
            self._finish(stored, exit_code)
            return
        # Whoever looks after `cancel` has answered sees CANCELLING first, as at Vertex AI.
        await asyncio.sleep(max(0.0, self._pending_seconds - (time.monotonic() - started)))
        self._store.move(stored, JobState.JOB_STATE_CANCELLED, Code.CANCELLED, "CANCELED")
