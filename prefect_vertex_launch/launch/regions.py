"""The regions that a queue's jobs may be in, each with its job service and its watcher.

A queue has one region, and more where its configuration falls back to others. A region is opened
when the first launch needs it and stays open as long as the context of its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.core.background import in_background
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.labels import QUEUE_LABEL
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.vertex.item_finder import ItemFinder
from prefect_vertex_launch.vertex.job_watcher import JobWatcher
from prefect_vertex_launch.vertex.jobs import VertexJobs

PARENT = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)")


@dataclass(frozen=True, eq=False)
class Region:
    """One region's job service, what finds the jobs of items there, and the watcher of the queue's jobs."""

    jobs: VertexJobs
    finder: ItemFinder
    watcher: JobWatcher


class Regions:
    """The regions of one queue.

    `stack` ends what is opened here; `on_denied` is called when Google does not accept the key, or says no.
    """

    def __init__(
        self,
        block: VertexLaunchQueue,
        stack: contextlib.AsyncExitStack,
        *,
        clock: Clock,
        on_denied: Callable[[], None],
    ) -> None:
        self._block = block
        self._on_denied = on_denied
        self._stack = stack
        self._clock = clock
        self._open: dict[tuple[str, str], Region] = {}
        self._opening = asyncio.Lock()

    @property
    def services(self) -> list[VertexJobs]:
        """The job services that are open."""
        return [region.jobs for region in self._open.values()]

    async def use(self, block: VertexLaunchQueue, *, has_new_key: bool) -> None:
        """Go on with a block that was changed. Raises AuthenticationFailed for an unusable key."""
        self._block = block
        if has_new_key:
            credentials = block.google_credentials()
            for region in self._open.values():
                await region.jobs.use(credentials)

    async def at(self, location: str) -> Region:
        """Return a region of the queue's project, opened if it is not yet.

        Raises AuthenticationFailed for unusable credentials.
        """
        return await self._at(self._block.project, location)

    async def of(self, job_name: str) -> Region:
        """Return the region of a job (`projects/…/locations/…/customJobs/…`)."""
        match = PARENT.match(job_name)
        return await self.at(match["location"] if match else self._block.location)

    def parents(self, locations: Iterable[str]) -> frozenset[str]:
        """Return what holds the jobs of the queue's project in these regions: `projects/…/locations/…`."""
        return frozenset(f"projects/{self._block.project}/locations/{location}" for location in locations)

    async def jobs_of(self, item_id: str, parents: Iterable[str]) -> tuple[JobRecord, ...]:
        """Return every job of a run queue item in these parents, by lists that have begun since."""
        matches = [match for parent in sorted(set(parents)) if (match := PARENT.fullmatch(parent))]
        regions = [await self._at(match["project"], match["location"]) for match in matches]
        queue = self._block.identity
        key = queue.item_key(item_id)
        found = await asyncio.gather(*(region.finder.find(key) for region in regions))
        return tuple(job for jobs in found for job in jobs if job.labels.get(QUEUE_LABEL) == queue.key)

    async def _at(self, project: str, location: str) -> Region:
        async with self._opening:
            if (project, location) not in self._open:
                self._open[project, location] = await self._opened(project, location)
            return self._open[project, location]

    async def _opened(self, project: str, location: str) -> Region:
        jobs = self._block.open_vertex_jobs(location, project, on_denied=self._on_denied)
        self._stack.push_async_callback(jobs.aclose)
        finder = ItemFinder(jobs, clock=self._clock)
        self._stack.push_async_callback(finder.aclose)
        watcher = JobWatcher(
            jobs,
            labels={QUEUE_LABEL: self._block.identity.key},
            interval_seconds=self._block.watch_seconds,
            clock=self._clock,
        )
        await self._stack.enter_async_context(
            in_background(watcher.run, f"the job watcher of {location}", self._clock)
        )
        return Region(jobs, finder, watcher)
