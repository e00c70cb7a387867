"""A look at W&B, Vertex AI and Prefect again and again while things run, for what must not be even then."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from tests.chaos.auditor import FlowRun, Job, PrefectSide
from tests.chaos.beside import beside
from tests.chaos.servers import SandboxProcess
from tests.chaos.workload import Workload

WATCH_SECONDS = 0.5
# Two jobs of one attempt are there until the pass that shows both; one whose agent has died may be there
# until somebody adopts the launch.
PASS_SECONDS = 5.0
# Between the answers of the servers that one look asks for things go on.
DRIFT_SECONDS = 5.0
ITEM_ENDS = frozenset({"FAILED"})
LAUNCH_ENDS = frozenset({"COMPLETED", "FAILED"})


@dataclass(frozen=True)
class Sight:
    """What was there at a moment: states of items at W&B, jobs at Vertex AI, launches at Prefect."""

    moment: float
    items: Mapping[str, str]
    jobs: Sequence[Job]
    flow_runs: Sequence[FlowRun]


@dataclass
class Watch:
    """Compares each sight with those before it; `violations` are in words, each once."""

    max_jobs: int
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    violations: dict[str, None] = field(default_factory=dict[str, None])
    sights: int = 0
    _since: dict[str, float] = field(default_factory=dict[str, float])
    _ended: dict[str, str] = field(default_factory=dict[str, str])

    def see(self, sight: Sight) -> None:
        """Look at one sight."""
        self.sights += 1
        lasting = dict(self._lasting(sight))
        self._since = {what: self._since.get(what, sight.moment) for what in lasting}
        for what, seconds in lasting.items():
            if sight.moment - self._since[what] >= seconds:
                self.violations[what] = None
        for what in self._overwritten(sight):
            self.violations[what] = None

    def _lasting(self, sight: Sight) -> Iterator[tuple[str, float]]:
        """What must not be, each with the seconds after which it must not be any more."""
        live = [job for job in sight.jobs if job.is_live]
        if len(live) > self.max_jobs:
            yield f"{len(live)} jobs were live at once; max_jobs is {self.max_jobs}", 0.0
        by_attempt: dict[tuple[str, str], list[str]] = defaultdict(list)
        for job in live:
            by_attempt[job.key, job.attempt].append(job.name)
        for names in by_attempt.values():
            if len(names) > 1:
                yield (
                    f"{' and '.join(sorted(names))} were live at once for long, for one attempt",
                    PASS_SECONDS,
                )
        live_keys = {job.key for job in live}
        for item_id, state in sight.items.items():
            if state == "PENDING" and self.keys.get(item_id) in live_keys:
                yield f"item {item_id} waited at W&B while a job of it was live", DRIFT_SECONDS
        for run in sight.flow_runs:
            if run.state in LAUNCH_ENDS and self.keys.get(run.item_id) in live_keys:
                yield (
                    f"the launch of item {run.item_id} was {run.state} while a job of it was live",
                    DRIFT_SECONDS,
                )

    def _overwritten(self, sight: Sight) -> Iterator[str]:
        """What had ended and is in another state now."""
        states = [
            *((f"item {item_id}", state, ITEM_ENDS) for item_id, state in sight.items.items()),
            *((f"the launch of {run.item_id}", run.state, LAUNCH_ENDS) for run in sight.flow_runs),
            *((job.name, job.state, frozenset[str]() if job.is_live else {job.state}) for job in sight.jobs),
        ]
        for what, state, ends in states:
            before = self._ended.get(what, state)
            if before != state:
                yield f"{what} had ended as {before} and was {state} later"
            if state in ends:
                self._ended[what] = state


@contextlib.asynccontextmanager
async def watching(
    watch: Watch, sandbox: SandboxProcess, workload: Workload, prefect: PrefectSide
) -> AsyncIterator[None]:
    """Look while the body runs; a server that is away is not looked at."""
    async with beside(_keep_looking(watch, sandbox, workload, prefect)):
        yield


async def _keep_looking(
    watch: Watch, sandbox: SandboxProcess, workload: Workload, prefect: PrefectSide
) -> None:
    while True:
        with contextlib.suppress(httpx.HTTPError):
            watch.keys = workload.keys
            # What is last in an item's course is asked for first: what comes later can only be further on.
            flow_runs = await prefect.flow_runs()
            items = await workload.states()
            watch.see(Sight(time.monotonic(), items, await sandbox.jobs(), flow_runs))
        await asyncio.sleep(WATCH_SECONDS)
