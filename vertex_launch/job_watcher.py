"""One watcher for every waiting job of a project and region: LIST pages, never a call per job.

Each pass lists the live jobs that carry the session's labels. A watched job that is not among them
has ended, or the list lags: only a GET of that one job says so. Steady cost: a page for each 100
live jobs, and one GET for each job that ends. A read that fails ends nobody's wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from vertex_launch.clock import Clock, SystemClock
from vertex_launch.errors import LaunchError, NotFound
from vertex_launch.lifecycle import STATE_OF_JOB, TERMINAL, JobRecord, LaunchState, advance
from vertex_launch.vertex_jobs import VertexJobs

logger = logging.getLogger(__name__)

OnChange = Callable[[JobRecord], Awaitable[None]]

MAX_BACKOFF_SECONDS = 300.0
# A job this many GETs did not find, each a pass apart, is gone: a fresh one may not be readable yet.
MISSES_UNTIL_LOST = 3
LOOKS_AT_ONCE = 8
_ACTIVE = " OR ".join(
    f'state="{job_state.name}"'
    for job_state, launch_state in STATE_OF_JOB.items()
    if launch_state not in TERMINAL and job_state.value != 0
)


@dataclass(eq=False, slots=True)
class _Watch:
    name: str
    ended: asyncio.Future[JobRecord]
    on_change: OnChange | None
    last: JobRecord | None = None
    misses: int = 0
    told_unknown: bool = False


@dataclass(eq=False)
class JobWatcher:
    """Waits for jobs until they are terminal.

    `labels` select the jobs that are listed, `interval_seconds` is the pause between two passes.
    `run` is the loop and has to be running for `wait` to return.
    """

    jobs: VertexJobs
    labels: Mapping[str, str]
    interval_seconds: float = 10.0
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        self._watches: dict[str, list[_Watch]] = {}
        self._wake = asyncio.Event()

    @property
    def watching(self) -> int:
        """How many jobs are waited for."""
        return len(self._watches)

    def wake(self) -> None:
        """Make the next pass start now."""
        self._wake.set()

    async def wait(self, name: str, on_change: OnChange | None = None) -> JobRecord:
        """Return the job's record once it is terminal; a job that vanished is returned as lost.

        `on_change` is awaited with each record whose state differs from the one before. Ending the
        wait from outside never touches the job.
        """
        watch = _Watch(_key(name), asyncio.get_running_loop().create_future(), on_change)
        if not self._watches:
            self.wake()
        self._watches.setdefault(watch.name, []).append(watch)
        try:
            return await watch.ended
        finally:
            watches = self._watches[watch.name]
            watches.remove(watch)
            if not watches:
                del self._watches[watch.name]

    async def run(self) -> None:
        """Serve every wait, for ever."""
        failures = 0
        while True:
            if not self._watches:
                self._wake.clear()
                await self._wake.wait()
            try:
                await self._pass()
                failures = 0
            except LaunchError as error:
                failures += 1
                logger.warning("The jobs of %s could not be read: %s", self.jobs.parent, error)
            await self._rest(min(MAX_BACKOFF_SECONDS, self.interval_seconds * 2 ** min(failures, 8)))

    async def _pass(self) -> None:
        waited_for = set(self._watches)
        terms = [f'labels.{key}="{value}"' for key, value in self.labels.items()]
        listed = await self.jobs.list(" AND ".join([*terms, f"({_ACTIVE})"]))
        found = {_key(job.name): job for job in listed}
        for key in waited_for & found.keys():
            await self._tell(key, found[key])
        # Many jobs may have left the list at once: a few at a time, so that one slow answer delays no one.
        limit = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def look(key: str) -> None:
            async with limit:
                await self._look(key)

        await asyncio.gather(*(look(key) for key in waited_for - found.keys()))

    async def _look(self, key: str) -> None:
        watches = self._watches.get(key, [])
        if not watches:
            return
        name = f"{self.jobs.parent}/customJobs/{key}"
        try:
            job = await self.jobs.get(name)
        except NotFound:
            for watch in watches:
                watch.misses += 1
            if min(watch.misses for watch in watches) >= MISSES_UNTIL_LOST:
                last = watches[0].last or JobRecord(name=name, state=0)
                await self._tell(key, replace(last, is_gone=True))
        except LaunchError as error:
            logger.warning("Job %s could not be read: %s", name, error)
        else:
            await self._tell(key, job)

    async def _tell(self, key: str, job: JobRecord) -> None:
        for watch in list(self._watches.get(key, [])):
            watch.misses = 0
            before = watch.last.launch_state if watch.last is not None else LaunchState.SUBMITTED
            self._log_unknown(watch, job)
            try:
                changed = watch.last is None or advance(before, job.launch_state) is not before
            except ValueError:
                # An older answer of a list that lags, or a state unknown here: what was read before stands.
                continue
            watch.last = job
            if changed and watch.on_change is not None:
                await self._call(watch.on_change, job)
            if job.is_terminal and not watch.ended.done():
                watch.ended.set_result(job)

    def _log_unknown(self, watch: _Watch, job: JobRecord) -> None:
        if job.launch_state is LaunchState.SUBMITTED and not watch.told_unknown:
            watch.told_unknown = True
            logger.warning("Job %s is in state %s, unknown here: still waiting", job.name, int(job.state))

    async def _call(self, on_change: OnChange, job: JobRecord) -> None:
        try:
            await on_change(job)
        except Exception:
            logger.exception("What was to be done when job %s changed has failed", job.name)

    async def _rest(self, seconds: float) -> None:
        sleeping = asyncio.create_task(self.clock.sleep(seconds))
        waking = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in (sleeping, waking):
                waiter.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiter
            self._wake.clear()


def _key(name: str) -> str:
    """The job's number: the server may answer with the project's number where we wrote its id."""
    return name.rsplit("/", 1)[-1]
