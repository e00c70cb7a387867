"""The counter of a concurrency limit, where no lease says what it counts."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.client.orchestration import PrefectClient
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings


async def take_off(
    client: PrefectClient, limit_names: Sequence[str], slots: int, *, occupancy_seconds: float
) -> None:
    """Take slots off the counters of limits; asked for once.

    Prefect's client would ask again if no answer came, and the server take them off again: a counter that
    is too low lets too many jobs run, one that is too high is put right in time. Raises httpx.HTTPError.
    """
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        await client.release_concurrency_slots([*limit_names], slots, occupancy_seconds)
