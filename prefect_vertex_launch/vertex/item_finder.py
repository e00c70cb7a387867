"""The jobs of run queue items, found by their label: one LIST for up to 30 items that ask together.

Each launch looks for its job before it creates one, and an agent that starts next to a thousand live
jobs looks for a thousand. Who asks is answered by a LIST that began after the question, so nobody gets
an answer older than what it asked for: a job that was there when it asked is seen.

A question is sent at once where there is budget enough. The more of the budget is used the longer a
LIST waits for others to join: two seconds from a third of it on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock, SystemClock, sleep_until
from prefect_vertex_launch.core.errors import Refused
from prefect_vertex_launch.core.labels import ITEM_LABEL
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.vertex.jobs import VertexJobs

logger = clean_log(__name__)

# How long a filter Vertex AI takes is not documented; this many keys of 40 characters stay below 2,048.
ITEMS_PER_LIST = 30
# One without an answer must not hold up the others.
LISTS_AT_ONCE = 4
LONGEST_PAUSE_SECONDS = 2.0

_Answer = asyncio.Future[tuple[JobRecord, ...]]


@dataclass(eq=False)
class ItemFinder:
    """Finds the jobs of items in one project and region. Nothing runs while nobody asks."""

    jobs: VertexJobs
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        # Who asks for which item, those who asked first in front.
        self._asked: dict[str, list[_Answer]] = {}
        self._items_per_list = ITEMS_PER_LIST
        self._has_enough = asyncio.Event()
        self._free = asyncio.Semaphore(LISTS_AT_ONCE)
        self._lists: set[asyncio.Task[None]] = set()
        self._server: asyncio.Task[None] | None = None

    async def find(self, key: str) -> tuple[JobRecord, ...]:
        """Return every job that carries this launch key, by a LIST that has begun since.

        Raises what the LIST raises: Transient after its last attempt, PermissionDenied, and the like.
        """
        answer: _Answer = asyncio.get_running_loop().create_future()
        self._asked.setdefault(key, []).append(answer)
        if len(self._asked) >= self._items_per_list:
            self._has_enough.set()
        if self._server is None:
            # It starts in the next turn of the loop: those who ask in this one share its first LIST.
            self._server = asyncio.create_task(self._serve(), name="item finder")
        return await answer

    async def aclose(self) -> None:
        """End what is under way; who waits for an answer is cancelled."""
        answers = [answer for asked in self._asked.values() for answer in asked]
        self._asked.clear()
        tasks = [*self._lists, *([self._server] if self._server is not None else [])]
        for waiting in (*tasks, *answers):
            waiting.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self) -> None:
        """Start LISTs as long as somebody asks."""
        try:
            while self._asked:
                await self._free.acquire()
                if not (batch := self._next_batch()):
                    self._free.release()
                    break
                task = asyncio.create_task(self._list(batch), name=f"list the jobs of {len(batch)} items")
                self._lists.add(task)
                task.add_done_callback(self._end_list)
                if len(self._asked) < self._items_per_list:
                    self._has_enough.clear()
                    pause_seconds = LONGEST_PAUSE_SECONDS * min(1.0, 3 * self.jobs.used_share) ** 2
                    await sleep_until(self._has_enough, pause_seconds, self.clock)
        finally:
            self._server = None

    def _end_list(self, task: asyncio.Task[None]) -> None:
        self._lists.discard(task)
        self._free.release()

    def _next_batch(self) -> dict[str, list[_Answer]]:
        """Take those who asked first; who has left meanwhile needs no answer."""
        batch: dict[str, list[_Answer]] = {}
        while self._asked and len(batch) < self._items_per_list:
            key = next(iter(self._asked))
            if asked := [answer for answer in self._asked.pop(key) if not answer.done()]:
                batch[key] = asked
        return batch

    async def _list(self, batch: dict[str, list[_Answer]]) -> None:
        terms = " OR ".join(f'labels.{ITEM_LABEL}="{key}"' for key in batch)
        try:
            found = await self.jobs.list(terms)
        except Refused as error:
            if len(batch) > 1:
                self._ask_for_fewer(batch, error)
            else:
                _fail(batch, error)
        except asyncio.CancelledError:
            for answer in _open(batch):
                answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, those who asked are to know
            _fail(batch, error)
        else:
            for key, asked in batch.items():
                own = tuple(job for job in found if job.labels.get(ITEM_LABEL) == key)
                for answer in asked:
                    if not answer.done():
                        answer.set_result(own)

    def _ask_for_fewer(self, batch: dict[str, list[_Answer]], error: Refused) -> None:
        """Put the questions back; half as many of them may be what Vertex AI takes."""
        self._items_per_list = max(1, len(batch) // 2)
        logger.warning(
            "Vertex AI refuses to list the jobs of %d items at once, asking for %d from now on: %s",
            len(batch), self._items_per_list, error,
        )  # fmt: skip
        for key, asked in batch.items():
            self._asked.setdefault(key, []).extend(asked)
        if self._server is None:
            self._server = asyncio.create_task(self._serve(), name="item finder")


def _open(batch: dict[str, list[_Answer]]) -> list[_Answer]:
    return [answer for asked in batch.values() for answer in asked if not answer.done()]


def _fail(batch: dict[str, list[_Answer]], error: Exception) -> None:
    for answer in _open(batch):
        answer.set_exception(error)
