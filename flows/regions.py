"""The regions that a queue's jobs may be in, each with its job service and its watcher.

A queue has one region, and more where its configuration falls back to others. A region is opened
when the first launch needs it and stays open as long as its session.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from blocks.vertex_queue import VertexLaunchQueue
from flows.background import in_background
from vertex_launch.clock import Clock
from vertex_launch.item_finder import ItemFinder
from vertex_launch.job_watcher import JobWatcher
from vertex_launch.lifecycle import JobRecord
from vertex_launch.render import QUEUE_LABEL, launch_key, queue_key
from vertex_launch.vertex_jobs import VertexJobs

_LOCATION = re.compile(r"projects/[^/]+/locations/(?P<location>[^/]+)/")


@dataclass(frozen=True, eq=False)
class Region:
    """One region's job service, what finds the jobs of items there, and the watcher of the queue's jobs."""

    jobs: VertexJobs
    finder: ItemFinder
    watcher: JobWatcher


class Regions:
    """The regions of one queue; `stack` ends what is opened here."""

    def __init__(self, block: VertexLaunchQueue, stack: contextlib.AsyncExitStack, *, clock: Clock) -> None:
        self._block = block
        self._stack = stack
        self._clock = clock
        self._open: dict[str, Region] = {}
        self._opening = asyncio.Lock()

    async def at(self, location: str) -> Region:
        """Return a region, opened if it is not yet. Raises AuthenticationFailed for unusable credentials."""
        async with self._opening:
            if location not in self._open:
                self._open[location] = await self._opened(location)
            return self._open[location]

    async def of(self, job_name: str) -> Region:
        """Return the region of a job (`projects/…/locations/…/customJobs/…`)."""
        match = _LOCATION.match(job_name)
        return await self.at(match["location"] if match else self._block.location)

    async def jobs_of(self, item_id: str, locations: Iterable[str]) -> tuple[JobRecord, ...]:
        """Return every job of a run queue item in these regions, by lists that have begun since."""
        regions = [await self.at(location) for location in sorted(set(locations))]
        found = await asyncio.gather(*(region.finder.find(launch_key(item_id)) for region in regions))
        return tuple(job for jobs in found for job in jobs)

    async def _opened(self, location: str) -> Region:
        jobs = self._block.open_vertex_jobs(location)
        self._stack.push_async_callback(jobs.aclose)
        finder = ItemFinder(jobs, clock=self._clock)
        self._stack.push_async_callback(finder.aclose)
        watcher = JobWatcher(
            jobs,
            labels={QUEUE_LABEL: queue_key(self._block.entity, self._block.queue)},
            interval_seconds=self._block.watch_seconds,
            clock=self._clock,
        )
        await self._stack.enter_async_context(
            in_background(watcher.run, f"the job watcher of {location}", self._clock)
        )
        return Region(jobs, finder, watcher)
