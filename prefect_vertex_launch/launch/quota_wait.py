"""Waiting for a quota before there is a job. Waiting is not failing; a queue may bound it by a timeout."""

from __future__ import annotations

from math import inf

from prefect_vertex_launch.core.clock import sleep_until_any
from prefect_vertex_launch.core.errors import OverQuota
from prefect_vertex_launch.core.retry import Backoff
from prefect_vertex_launch.core.states import Requester
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.notify import show, warn
from prefect_vertex_launch.launch.run_log import run_log

MAX_QUOTA_PAUSE_SECONDS = 300.0
MAX_RATE_PAUSE_SECONDS = 60.0


class QuotaWait:
    """The wait of one launch for a quota: at first as long as between two looks at the jobs, then longer."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._backoff = Backoff(launch.context.block.watch_seconds, MAX_QUOTA_PAUSE_SECONDS)

    async def again(self, error: OverQuota) -> bool:
        """Wait before the next try; False if there is to be none, because somebody asked for an end."""
        launch, block, clock = self._launch, self._launch.context.block, self._launch.context.clock
        waited_seconds = launch.waited.for_quota_seconds
        left_seconds = (block.queueing_timeout_seconds or inf) - waited_seconds
        if left_seconds <= 0:
            launch.request_end(Requester.QUEUEING_TIMEOUT)
            return False
        self._backoff.longest_seconds = (
            MAX_QUOTA_PAUSE_SECONDS if error.is_capacity else MAX_RATE_PAUSE_SECONDS
        )
        pause_seconds = min(self._backoff.next_seconds(error), left_seconds)
        run_log().info("Waiting %.0f s for quota: %s", pause_seconds, error)
        await show(launch, "WaitingForQuota", f"No job yet: {error}")
        if waited_seconds >= block.long_wait_seconds:
            await warn(launch, f"Waiting for quota for {waited_seconds:.0f} s now: {error}")
        began = clock.monotonic()
        is_over = await sleep_until_any([launch.leave, launch.stop_requested], pause_seconds, clock)
        # The wait for its slot is none for a quota, so only this is added up.
        launch.waited.for_quota_seconds += clock.monotonic() - began
        return not is_over
