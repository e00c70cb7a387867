"""The counter of a concurrency limit, where no lease says what it counts."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
from prefect.client.orchestration import PrefectClient

from prefect_vertex_launch.coordination.asking_once import asking_once
from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.retry import Backoff, retrying

ATTEMPTS, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 3, 1.0, 3.0


async def take_off(
    client: PrefectClient,
    limit_names: Sequence[str],
    slots: int,
    *,
    occupancy_seconds: float,
    clock: Clock,
) -> None:
    """Take slots off the counters of limits; asked for again only if the server has not heard of it.

    Prefect's client would ask again if no answer came, and the server take them off again: a counter that
    is too low lets too many jobs run, one that is too high is put right in time. Raises httpx.HTTPError.
    """

    async def once() -> None:
        with asking_once():
            await client.release_concurrency_slots([*limit_names], slots, occupancy_seconds)

    await retrying(
        once,
        clock=clock,
        backoff=Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
        attempts=ATTEMPTS,
        retry_if=lambda error: isinstance(error, httpx.ConnectError | httpx.ConnectTimeout),
    )
