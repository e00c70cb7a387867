"""The course of one launch: its steps in their order, again for each attempt, over outages and hand-overs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from prefect import State
from prefect.exceptions import Abort

from prefect_vertex_launch.core.clock import sleep_until, sleep_until_any
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    Conflict,
    LaunchError,
    OutcomeUnknown,
    Permanent,
    Transient,
)
from prefect_vertex_launch.core.retry import asked_pause_seconds
from prefect_vertex_launch.core.states import Requester
from prefect_vertex_launch.launch import find_jobs, timeouts
from prefect_vertex_launch.launch import report as outcome
from prefect_vertex_launch.launch import submit as steps
from prefect_vertex_launch.launch.launch import LiveLaunch
from prefect_vertex_launch.launch.notify import show
from prefect_vertex_launch.launch.queue_context import LaunchSession
from prefect_vertex_launch.launch.run_log import run_log

# A step is tried again for about half a minute; a remote system that is away for longer makes the whole
# launch wait and start over, for as long as it takes.
FIRST_PAUSE_SECONDS = 30.0
MAX_PAUSE_SECONDS = 300.0
_ANOTHERS = "another agent has taken it over, or may have"

Step = Callable[[LaunchSession, LiveLaunch], Awaitable[Any]]


class Course:
    """One launch on its way; `take` takes a step, as a Prefect task for example.

    The process that takes it may end at any time: another one takes the same steps from the top and
    finds what is done already.
    """

    def __init__(
        self, session: LaunchSession, live: LiveLaunch, take: Callable[[Step], Awaitable[Any]]
    ) -> None:
        self._session = session
        self._live = live
        self._take = take

    async def run(self) -> State[Any]:
        """Return the state in which the launch's flow run ends. Raises Abort when it is handed over."""
        session, live = self._session, self._live
        session.live[live.item.item_id] = live
        try:
            ended = await self._until_settled()
        except Conflict as error:
            # The item may have been another agent's for long, and its launch too: that one's state stays.
            if not await session.until_sure(live):
                raise Abort(_ANOTHERS) from error
            ended = outcome.elsewhere_state(error)
        finally:
            session.live.pop(live.item.item_id, None)
        # Not if it ends in any other way: its job may run on then.
        live.job_ended.set()
        return ended

    async def _until_settled(self) -> State[Any]:
        """Take the steps, from the top after each outage: what is done already is found, not repeated."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._settled()
            except (Transient, OutcomeUnknown, AuthenticationFailed) as error:
                # A key or token that is not accepted is the queue's, not this item's: somebody renews it.
                jittered_seconds = pause_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                seconds = max(jittered_seconds, asked_pause_seconds(error))
                run_log().warning("Waiting %.0f s before going on: %s", seconds, error)
                await show(self._session, self._live, "WaitingForService", str(error))
                await self._pause(seconds)
                pause_seconds = min(MAX_PAUSE_SECONDS, pause_seconds * 2)

    async def _settled(self) -> State[Any]:
        """Take the steps, or tell W&B that the item is refused, until W&B has taken that."""
        live = self._live
        if live.refusal is None:
            try:
                return await self._steps()
            except (AuthenticationFailed, Conflict):
                raise
            except Permanent as error:
                live.refusal = error
        if live.job is None or live.job.is_terminal:
            # Nothing runs: others need not wait until W&B has heard of it.
            live.job_ended.set()
        await self._tell(steps.refuse)
        return outcome.refused_state(live.refusal)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try, no longer than until somebody asks for the launch's end."""
        live, clock = self._live, self._session.clock
        if live.stop_requested.is_set():
            await self._cancel_if_asked()
            await sleep_until(live.leave, seconds, clock)
        else:
            await sleep_until_any([live.leave, live.stop_requested], seconds, clock)
            await self._cancel_if_asked()
        if live.leave.is_set():
            raise Abort("handed over while a remote system is away")

    async def _cancel_if_asked(self) -> None:
        """End what runs of a launch that was cancelled in Prefect; W&B is told when it can be."""
        session, live = self._session, self._live
        if live.stop is None or live.stop.who is not Requester.PREFECT:
            return
        try:
            await find_jobs.cancel_all(session, live.item, live.whereabouts)
        except LaunchError as error:
            run_log().warning("What runs of a cancelled launch could not be ended yet: %s", error)

    async def _tell(self, step: Step) -> None:
        """Tell how the launch ended. Raises Abort if somebody else speaks for it by now, or may."""
        if not await self._session.until_sure(self._live) or not await self._take(step):
            is_left = self._live.leave.is_set() and not self._live.is_anothers
            raise Abort("handed over before W&B was told how it ended" if is_left else _ANOTHERS)

    async def _steps(self) -> State[Any]:
        session, live, log = self._session, self._live, run_log()
        if is_claimed := await self._taken_unless_left(steps.claim):
            if live.run is None:
                raise Abort(_ANOTHERS)
            log.info("Claimed item %s as run %s", live.item.item_id, live.run.run_id)
        while True:
            if live.item.job_name:
                await self._take(steps.find_running_job)
            elif live.job is None and await self._taken_unless_left(steps.render_job):
                await self._taken_unless_left(steps.submit)
            if live.job is None:
                if live.leave.is_set() or live.stop is None:
                    raise Abort("handed over before there was a job")
                break
            log.info("CustomJob %s is %s", live.job.name, live.job.launch_state)
            await self._follow()
            if not is_claimed or not find_jobs.turn_to_next(session, live):
                break
            await timeouts.tell_of_relaunch(session, live)
        live.job_ended.set()
        await self._tell(steps.report)
        return outcome.final_state(session, live)

    async def _taken_unless_left(self, step: Step) -> bool:
        """Take a step on the way to a job; False if it cannot be taken any more, but there is a job already.

        Whatever has become of its item and configuration since, no job is left to itself.
        """
        live = self._live
        try:
            await self._take(step)
        except AuthenticationFailed:
            raise
        except Permanent as error:
            may_have_job = live.may_have_job or bool(live.ended)
            if live.job is None and not (may_have_job and await self._take(steps.find_left_job)):
                if live.leave.is_set():
                    raise Abort("handed over before it was clear whether there is a job") from error
                raise
            run_log().warning("%s is seen through all the same: %s", live.job and live.job.name, error)
            return False
        return True

    async def _follow(self) -> None:
        """Follow the current attempt's job to its end."""
        session, live = self._session, self._live
        showing_links = asyncio.create_task(outcome.show_links(session, live))
        await self._take(steps.wait)
        await showing_links
        assert live.job is not None
        if not live.job.is_terminal:
            # The flow run stays as it is at Prefect; the agent that stops leaves it for the next one.
            raise Abort(f"handed over while {live.job.name} is {live.job.launch_state}")
        run_log().info("CustomJob %s ended: %s", live.job.name, live.job.launch_state)
