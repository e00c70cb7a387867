"""Queues that share a limit, served in turns: the one that was served longest ago comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefect_vertex_launch.agent.queue_worker import Found, QueueWorker
from prefect_vertex_launch.coordination.prefect_api import expected_or_told
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock, sleep_until
from prefect_vertex_launch.core.retry import Backoff

logger = clean_log("prefect.vertex-launch.agent")

MAX_BACKOFF_SECONDS = 60.0


@dataclass(eq=False, slots=True)
class _Turn:
    """One queue's place in the round; while it cannot be asked it is passed over for a while."""

    worker: QueueWorker
    backoff: Backoff
    not_before: float = 0.0


def by_shared_limits(limits_of_queues: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return the indices of queues in groups: two that have a limit in common are in one group."""
    groups: list[tuple[set[str], list[int]]] = []
    for index, limits in enumerate(limits_of_queues):
        names, members = set(limits), [index]
        for group in [group for group in groups if group[0] & names]:
            groups.remove(group)
            names |= group[0]
            members = [*group[1], *members]
        groups.append((names, members))
    return [members for _, members in groups]


class RoundRobin:
    """Serves queues one after the other.

    `wake` is set when a slot may have become free, or when the agent is to end.
    """

    def __init__(self, workers: Sequence[QueueWorker], *, wake: asyncio.Event, clock: Clock) -> None:
        self.workers = tuple(workers)
        self._turns = [
            _Turn(worker, Backoff(2 * worker.context.block.poll_seconds, MAX_BACKOFF_SECONDS))
            for worker in workers
        ]
        self._wake = wake
        self._clock = clock
        self._poll_seconds = min(worker.context.block.poll_seconds for worker in workers)

    async def serve(self, *, drain: bool, is_over: Callable[[], bool]) -> None:
        """Start launches until the agent is to end, or with `drain` until nothing is left to do."""
        while not is_over():
            found = await self._look()
            if Found.ITEM in found:
                continue
            is_empty = set(found) == {Found.EMPTY_QUEUE}
            if drain and is_empty and not any(worker.is_busy for worker in self.workers):
                return
            for worker in self.workers:
                worker.context.burst_is_over.set()
            await sleep_until(self._wake, self._poll_seconds, self._clock)
            self._wake.clear()

    async def _look(self) -> list[Found | None]:
        """Ask the queues in their order until one has started an item; it goes to the end of the line.

        None stands for a queue that could not be asked, or was not for now. Where the shared limit is
        full nobody is asked who stands behind: a slot that becomes free is for the first in line.
        """
        found: list[Found | None] = []
        for turn in [*self._turns]:
            result = await self._start_next(turn)
            if result is Found.NO_SLOT and len(self._turns) > 1:
                if not await self._has_shared_room(turn):
                    return [*found, result]
                result = await self._start_next(turn)
            found.append(result)
            if result is Found.ITEM:
                self._turns.remove(turn)
                self._turns.append(turn)
                break
        return found

    async def _has_shared_room(self, turn: _Turn) -> bool:
        try:
            return await turn.worker.has_shared_room()
        except Exception as error:  # noqa: BLE001 - as below
            told = expected_or_told(error, where="the shared limits", log=logger)
            logger.warning("Prefect could not be asked for shared limits: %s", told)
            return False

    async def _start_next(self, turn: _Turn) -> Found | None:
        if self._clock.monotonic() < turn.not_before:
            return None
        try:
            found = await turn.worker.start_next()
        except Exception as error:  # noqa: BLE001 - one queue's trouble is not that of the others
            queue = turn.worker.context.block_name
            told = expected_or_told(error, where=f"queue {queue}", log=logger)
            pause_seconds = max(self._poll_seconds, turn.backoff.next_seconds(told))
            turn.not_before = self._clock.monotonic() + pause_seconds
            logger.warning("Nothing could be taken from %s, again in %.0f s: %s", queue, pause_seconds, told)
            return None
        turn.backoff.reset()
        return found
