"""The counter of a concurrency limit, where no lease says what it counts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import httpx
from prefect.client.orchestration import PrefectClient

from prefect_vertex_launch.coordination.asking_once import asking_once
from prefect_vertex_launch.core.clock import Clock

PAUSES_SECONDS = (1.0, 3.0)


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
    for pause_seconds in (*PAUSES_SECONDS, None):
        try:
            with asking_once():
                await client.release_concurrency_slots([*limit_names], slots, occupancy_seconds)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if pause_seconds is None:
                raise
            await clock.sleep(pause_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        else:
            return
