"""One watcher for every waiting job of a project and region: LIST pages, never a call per job.

Each pass lists the live jobs that carry the session's labels. A watched job that is not among them
has ended, or the list lags: only a GET of that one job says so. Steady cost: a page for each 100
live jobs, and one GET for each job that ends. A read that fails ends nobody's wait.

No job delays another. A GET is a task of its own, so that one without an answer holds up only its
job; what a launch does about a change runs in the task that waits. When many jobs leave the list at
once, or the list is wrong, the GETs are few at a time, who has stood longest in line first, and the
budget of the project and region bounds them (call_budget.py).

A list also shows what nobody may have seen before: a second live job of an item that is waited for here,
whose create was given up for lost. The one too many is cancelled, on each pass until it is.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock, SystemClock, sleep_until
from prefect_vertex_launch.core.duplicates import surplus
from prefect_vertex_launch.core.errors import LaunchError, NotFound
from prefect_vertex_launch.core.labels import ITEM_LABEL
from prefect_vertex_launch.core.retry import Backoff
from prefect_vertex_launch.core.states import STATE_OF_JOB, TERMINAL, JobRecord, LaunchState, advance
from prefect_vertex_launch.vertex.jobs import VertexJobs

logger = clean_log(__name__)

OnChange = Callable[[JobRecord], Awaitable[None]]

MAX_BACKOFF_SECONDS = 60.0
# A job this many GETs did not find, each a pass apart, is gone: a fresh one may not be readable yet.
MISSES_UNTIL_LOST = 3
LOOKS_AT_ONCE = 8
# The filter for jobs that have not ended.
ACTIVE_JOBS = " OR ".join(
    f'state="{job_state.name}"'
    for job_state, launch_state in STATE_OF_JOB.items()
    if launch_state not in TERMINAL and job_state.value != 0
)


@dataclass(eq=False, slots=True)
class _Watch:
    key: str
    name: str
    changes: asyncio.Queue[JobRecord] = field(default_factory=asyncio.Queue[JobRecord])
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
        # Jobs that are not in the list, in the order in which they are to be read one by one.
        self._missing: dict[str, None] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Task[None]] = {}
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

        `on_change` is awaited with each record whose state differs from the one before, the terminal
        one included, one after the other; while it is busy this wait goes on, and no other notices.
        Ending the wait from outside never touches the job.
        """
        watch = _Watch(_key(name), name)
        if not self._watches:
            self.wake()
        self._watches.setdefault(watch.key, []).append(watch)
        try:
            while True:
                job = await watch.changes.get()
                if on_change is not None:
                    await self._call(on_change, job)
                if job.is_terminal:
                    return job
        finally:
            self._forget(watch)
            if watch.key not in self._watches and watch.key in self._looks:
                self._looks[watch.key].cancel()

    async def run(self) -> None:
        """Serve every wait, for ever."""
        backoff = Backoff(2 * self.interval_seconds, MAX_BACKOFF_SECONDS, least_share=1.0)
        try:
            while True:
                if not self._watches:
                    self._wake.clear()
                    await self._wake.wait()
                pause_seconds = self.interval_seconds
                try:
                    await self._pass()
                    backoff.reset()
                except LaunchError as error:
                    pause_seconds = max(pause_seconds, backoff.next_seconds(error))
                    logger.warning("The jobs of %s could not be read: %s", self.jobs.parent, error)
                await sleep_until(self._wake, pause_seconds, self.clock)
                self._wake.clear()
        finally:
            self._missing.clear()
            under_way = [*self._looks.values(), *self._cancels.values()]
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _pass(self) -> None:
        # Who comes while the list is read may not be in it.
        waited_for = list(self._watches)
        terms = [f'labels.{key}="{value}"' for key, value in self.labels.items()]
        listed = await self.jobs.list(" AND ".join([*terms, f"({ACTIVE_JOBS})"]))
        found = {_key(job.name): job for job in listed}
        for key in waited_for:
            if key in found:
                self._missing.pop(key, None)
                self._tell(key, found[key])
            elif key in self._watches and key not in self._looks:
                self._missing.setdefault(key)
        self._start_looks()
        self._cancel_duplicates(listed)

    def _cancel_duplicates(self, listed: Iterable[JobRecord]) -> None:
        """Cancel the job too many of each item with a job that is waited for here."""
        jobs_of_item: defaultdict[str, list[JobRecord]] = defaultdict(list)
        for job in listed:
            if item := job.labels.get(ITEM_LABEL):
                jobs_of_item[item].append(job)
        for jobs in jobs_of_item.values():
            if not any(_key(job.name) in self._watches for job in jobs):
                continue
            if (too_many := surplus(jobs)) and too_many.job.name not in self._cancels:
                name = too_many.job.name
                logger.error("Cancelling %s: %s", name, too_many.reason)
                self._cancels[name] = asyncio.create_task(self._cancel(name), name=f"cancel {name}")
                self._cancels[name].add_done_callback(lambda _, name=name: self._cancels.pop(name))

    async def _cancel(self, name: str) -> None:
        try:
            await self.jobs.cancel(name)
        except NotFound:
            pass  # it is gone already
        except LaunchError as error:
            logger.warning("%s could not be cancelled yet: %s", name, error)

    def _start_looks(self) -> None:
        """Read the next missing jobs; the others stay in line until a look ends or a pass comes."""
        while self._missing and len(self._looks) < LOOKS_AT_ONCE:
            key = next(iter(self._missing))
            del self._missing[key]
            look = asyncio.create_task(self._look(key), name=f"look at job {key}")
            self._looks[key] = look
            look.add_done_callback(partial(self._end_look, key))

    def _end_look(self, key: str, look: asyncio.Task[None]) -> None:
        del self._looks[key]
        if not look.cancelled() and (error := look.exception()) is not None:
            logger.error("Job %s could not be read", key, exc_info=error)
        self._start_looks()

    async def _look(self, key: str) -> None:
        if not (watches := self._watches.get(key)):
            return
        # The whole name, as the job may be another project's than those in the list.
        name = watches[0].name
        try:
            # Sent once: a pass comes soon enough, and others are in line.
            job = await self.jobs.get(name, attempts=1)
        except NotFound:
            self._miss(key, name)
        except LaunchError as error:
            logger.warning("Job %s could not be read: %s", name, error)
        else:
            self._tell(key, job)

    def _miss(self, key: str, name: str) -> None:
        watches = self._watches.get(key, [])
        for watch in watches:
            watch.misses += 1
        if watches and min(watch.misses for watch in watches) >= MISSES_UNTIL_LOST:
            last = watches[0].last or JobRecord(name=name, state=0)
            self._tell(key, replace(last, is_gone=True))

    def _tell(self, key: str, job: JobRecord) -> None:
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
            if changed:
                watch.changes.put_nowait(job)
            if job.is_terminal:
                self._forget(watch)

    def _forget(self, watch: _Watch) -> None:
        """Read nothing more for a wait; it may have been forgotten before."""
        watches = self._watches.get(watch.key, [])
        if watch in watches:
            watches.remove(watch)
            if not watches:
                del self._watches[watch.key]
                self._missing.pop(watch.key, None)

    def _log_unknown(self, watch: _Watch, job: JobRecord) -> None:
        if job.launch_state is LaunchState.SUBMITTED and not watch.told_unknown:
            watch.told_unknown = True
            logger.warning("Job %s is in state %s, unknown here: still waiting", job.name, int(job.state))

    async def _call(self, on_change: OnChange, job: JobRecord) -> None:
        try:
            await on_change(job)
        except Exception:
            logger.exception("What was to be done when job %s changed has failed", job.name)


def _key(name: str) -> str:
    """The job's number: the server may answer with the project's number where we wrote its id."""
    return name.rsplit("/", 1)[-1]
