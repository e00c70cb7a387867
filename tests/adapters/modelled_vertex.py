"""Vertex AI's client in virtual time, without sockets: what is measured is exact."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar, cast

import pytest
from google.api_core import exceptions as google

from prefect_vertex_launch.core.vertex_types import CustomJob, ListCustomJobsResponse
from prefect_vertex_launch.sandbox.vertex.filter import parse_filter
from prefect_vertex_launch.vertex import channel
from tests.simulation.virtual_time import VirtualClock, VirtualLoop

T = TypeVar("T")


class LoopClock(VirtualClock):
    """The clock of the running loop."""

    def __init__(self) -> None:
        super().__init__(cast("VirtualLoop", asyncio.get_running_loop()))


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop of its own; what it leaves behind is cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def most_in_a_window(times: list[float], seconds: float = 60.0) -> int:
    """Return how many of these times lie in the fullest window of so many seconds."""
    window: deque[float] = deque()
    most = 0
    for time in sorted(times):
        window.append(time)
        while time - window[0] >= seconds - 1e-6:
            window.popleft()
        most = max(most, len(window))
    return most


class ModelledVertex:
    """JobService as Google's generated client has it, with a delay, and the filters of the sandbox.

    `sent` are the calls with their time, `filters` those of the lists, `read` the names of the jobs that
    were read one by one. `failure` is asked before each answer whether the call is to fail.
    """

    def __init__(self, delay_seconds: float = 0.3) -> None:
        self.delay_seconds = delay_seconds
        self.jobs: dict[str, CustomJob] = {}
        self.sent: list[tuple[float, str]] = []
        self.filters: list[str] = []
        self.read: list[str] = []
        self.failure: Callable[[str, Any], Exception | None] = lambda method, request: None
        self.transport = self

    async def close(self) -> None:
        """Nothing is open."""

    def add(self, number: int, state: int, **labels: str) -> str:
        name = f"projects/p/locations/us-central1/customJobs/{number}"
        self.jobs[name] = CustomJob(name=name, state=state, labels=labels)
        return name

    def times(self, *methods: str) -> list[float]:
        return [time for time, method in self.sent if method in methods or not methods]

    @property
    def calls(self) -> Counter[str]:
        return Counter(method for _, method in self.sent)

    async def create_custom_job(self, request: Any, **_: Any) -> CustomJob:
        await self._answer("create", request)
        return self.jobs[self.add(len(self.jobs) + 1, 2, **dict(request.custom_job.labels))]

    async def get_custom_job(self, request: Any, **_: Any) -> CustomJob:
        self.read.append(request.name)
        await self._answer("get", request)
        if request.name not in self.jobs:
            raise google.NotFound("The CustomJob does not exist.")
        return self.jobs[request.name]

    async def cancel_custom_job(self, request: Any, **_: Any) -> None:
        await self._answer("cancel", request)

    async def list_custom_jobs(self, request: Any, **_: Any) -> Any:
        self.filters.append(request.filter)
        test = parse_filter(request.filter)
        found = [job for job in self.jobs.values() if test(type(job).pb(job))]
        await self._answer("list", request)
        start = int(request.page_token or 0)
        end = start + request.page_size
        token = str(end) if end < len(found) else ""
        page = ListCustomJobsResponse(custom_jobs=found[start:end], next_page_token=token)

        class Pager:
            @property
            async def pages(self) -> Any:
                yield page

        return Pager()

    async def _answer(self, method: str, request: Any) -> None:
        self.sent.append((asyncio.get_running_loop().time(), method))
        await asyncio.sleep(self.delay_seconds)
        if (error := self.failure(method, request)) is not None:
            raise error


@contextlib.contextmanager
def served_by(vertex: ModelledVertex) -> Iterator[ModelledVertex]:
    """Every client that is opened in the body is this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel, "_open_client", lambda *_: vertex)
        yield vertex
