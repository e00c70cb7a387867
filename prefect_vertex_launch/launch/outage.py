"""What a launch does while a remote system is away: it waits, shows why, and begins again from the top.

A step is tried again for about half a minute. A system that is away for longer makes the whole launch wait
and start over, for as long as it takes.
"""

from __future__ import annotations

from prefect.exceptions import Abort

from prefect_vertex_launch.core.clock import sleep_until, sleep_until_any
from prefect_vertex_launch.core.errors import AuthenticationFailed, OutcomeUnknown, Transient
from prefect_vertex_launch.core.retry import Backoff
from prefect_vertex_launch.core.states import Requester
from prefect_vertex_launch.launch.cancel import cancel_jobs_of
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.notify import show
from prefect_vertex_launch.launch.run_log import run_log

FIRST_PAUSE_SECONDS = 30.0
MAX_PAUSE_SECONDS = 300.0
# A key or token that is not accepted is the queue's fault and not this item's: somebody renews it.
OUTAGES = (Transient, OutcomeUnknown, AuthenticationFailed)


class Outages:
    """The outages that one launch lives through."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._backoff = Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)

    async def sit_out(self, error: Exception) -> None:
        """Wait before the launch begins again, no longer than until somebody asks for its end.

        Raises Abort when the launch is handed over before.
        """
        launch = self._launch
        seconds = self._backoff.next_seconds(error)
        run_log().warning("Waiting %.0f s before going on: %s", seconds, error)
        await show(launch, "WaitingForService", str(error))
        if launch.stop_requested.is_set():
            await _cancel_if_asked(launch)
            await sleep_until(launch.leave, seconds, launch.context.clock)
        else:
            await sleep_until_any([launch.leave, launch.stop_requested], seconds, launch.context.clock)
            await _cancel_if_asked(launch)
        if launch.leave.is_set():
            raise Abort("handed over while a remote system is away")


async def _cancel_if_asked(launch: Launch) -> None:
    """End what runs of a launch that was cancelled in Prefect; W&B is told when it can be."""
    if launch.stop is None or launch.stop.who is not Requester.PREFECT:
        return
    try:
        await cancel_jobs_of(launch.context, launch.item, launch.parents)
    except Exception as error:  # noqa: BLE001 - the launch goes on waiting, and tries again
        run_log().warning("What runs of a cancelled launch could not be ended yet: %s", error)
