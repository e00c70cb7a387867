"""How many calls go to Vertex AI: never more than a number in any 60 seconds, whoever sends them.

Vertex AI allows about 600 calls a minute in a project and region, and 60 submissions of jobs. Everyone
in an event loop who calls the same endpoint for the same project and region shares one budget, which
lets half of those calls pass. So a second process fits beside it that has only just begun; of n agents
that know of each other each takes 1/(n + 1) of all calls, so that one more always fits. The windows
slide: whichever 60 seconds one looks at, there are no more calls in them.

Who finds no room waits in line. Cancels come first, then reads of one job, lists, and creates last;
within each kind who came first goes first. No kind is passed over more than a few times while it could
go, so none starves behind another.

When Vertex AI refuses a call for its rate all the same, because others use the quota too, the budget
is halved for everyone, and grows back by and by.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from weakref import WeakKeyDictionary

from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock

logger = clean_log(__name__)

WINDOW_SECONDS = 60.0
CALLS_PER_MINUTE = 300
SUBMISSIONS_PER_MINUTE = 50
# While a kind of call waits and could go, so many others go before it at most.
PASSED_OVER_AT_MOST = 4
LEAST_SHARE = 1 / 16
# From nothing to the whole budget; from half of it in half of this time.
RECOVERY_SECONDS = 600.0
_SHORTEST_PAUSE_SECONDS = 0.001


class Call(StrEnum):
    """The calls, the most urgent first."""

    CANCEL = "cancel"
    GET = "get"
    LIST = "list"
    CREATE = "create"


@dataclass(eq=False, slots=True)
class _Window:
    """At most `limit` calls in any 60 seconds, fewer beside other agents or for a while after a refusal."""

    limit: int
    part: float = 1.0
    times: deque[float] = field(default_factory=deque[float])
    share: float = 1.0
    slowed_at: float | None = None

    def allowed(self, now: float) -> int:
        return max(1, int(self.limit * self._share(now) * self.part))

    def pause_seconds(self, now: float) -> float:
        """Return how long it takes until a call may pass; 0 if it may now."""
        while self.times and now - self.times[0] >= WINDOW_SECONDS:
            self.times.popleft()
        too_many = len(self.times) - self.allowed(now)
        if too_many < 0:
            return 0.0
        seconds = self.times[too_many] + WINDOW_SECONDS - now
        if self._share(now) < 1.0:
            # There may be room earlier, because more is allowed by and by.
            seconds = min(seconds, RECOVERY_SECONDS / self.limit)
        return max(_SHORTEST_PAUSE_SECONDS, seconds)

    def slow_down(self, now: float, sent_at: float) -> bool:
        """Halve what is allowed, unless the refused call was sent before that was done the last time."""
        if self.slowed_at is not None and sent_at <= self.slowed_at:
            return False
        self.share = max(LEAST_SHARE, self._share(now) / 2)
        self.slowed_at = now
        return True

    def _share(self, now: float) -> float:
        if self.slowed_at is None:
            return 1.0
        return min(1.0, self.share + (now - self.slowed_at) / RECOVERY_SECONDS)


class CallBudget:
    """Lets calls pass: `calls_per_minute` of all kinds, of which `submissions_per_minute` create a job."""

    def __init__(
        self,
        *,
        clock: Clock,
        calls_per_minute: int = CALLS_PER_MINUTE,
        submissions_per_minute: int = SUBMISSIONS_PER_MINUTE,
    ) -> None:
        self._clock = clock
        self._calls = _Window(calls_per_minute)
        self._submissions = _Window(submissions_per_minute)
        self._lines: Mapping[Call, deque[asyncio.Future[float]]] = {call: deque() for call in Call}
        self._passed_over = dict.fromkeys(Call, 0)
        self._timer: asyncio.Task[None] | None = None
        self._timer_ends_at = 0.0

    @property
    def used_share(self) -> float:
        """How much of the budget of all calls the last 60 seconds have used, from 0 to 1."""
        now = self._clock.monotonic()
        self._calls.pause_seconds(now)
        return min(1.0, len(self._calls.times) / self._calls.allowed(now))

    def lower_to(self, *, calls_per_minute: int, submissions_per_minute: int) -> None:
        """Allow no more than this from now on; a limit that is lower already stays."""
        self._calls.limit = min(self._calls.limit, calls_per_minute)
        self._submissions.limit = min(self._submissions.limit, submissions_per_minute)

    def narrow(self, part: float) -> None:
        """Let pass this part of the calls of all kinds from now on, in place of another part before."""
        self._calls.part = part
        self._serve()

    async def take(self, call: Call) -> float:
        """Wait until a call may be sent, which is to be done at once; return the time of this moment.

        Ending the wait from outside leaves the line.
        """
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._lines[call].append(turn)
        self._serve()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn in self._lines[call]:
                self._lines[call].remove(turn)
                self._set_timer()
            raise

    def slow_down(self, call: Call, sent_at: float) -> None:
        """Send fewer calls after one was refused for their rate; `sent_at` is what `take` returned for it.

        The refusals of calls that were under way together count as one.
        """
        now = self._clock.monotonic()
        is_slower = self._calls.slow_down(now, sent_at)
        if call is Call.CREATE:
            is_slower = self._submissions.slow_down(now, sent_at) or is_slower
        if is_slower:
            logger.warning(
                "Vertex AI refuses calls for their rate: %d calls and %d submissions a minute for now",
                self._calls.allowed(now), self._submissions.allowed(now),
            )  # fmt: skip

    def _serve(self) -> None:
        """Let pass who may, and see to it that the others are served in time."""
        now = self._clock.monotonic()
        while (call := self._next(now)) is not None:
            turn = self._lines[call].popleft()
            if turn.done():  # whoever waited was cancelled and has not run since
                continue
            self._calls.times.append(now)
            if call is Call.CREATE:
                self._submissions.times.append(now)
            turn.set_result(now)
        self._set_timer()

    def _next(self, now: float) -> Call | None:
        if self._calls.pause_seconds(now) > 0:
            return None
        can_submit = self._submissions.pause_seconds(now) == 0
        ready = [call for call in Call if self._lines[call] and (can_submit or call is not Call.CREATE)]
        if not ready:
            return None
        longest = max(ready, key=lambda call: self._passed_over[call])
        chosen = longest if self._passed_over[longest] >= PASSED_OVER_AT_MOST else ready[0]
        for call in ready:
            self._passed_over[call] += 1
        self._passed_over[chosen] = 0
        return chosen

    def _set_timer(self) -> None:
        """Serve again when the first of those who wait may go."""
        now = self._clock.monotonic()
        pause_seconds = self._calls.pause_seconds(now) or self._submissions.pause_seconds(now)
        is_needed = any(self._lines.values())
        if self._timer is not None:
            if is_needed and self._timer_ends_at <= now + pause_seconds:
                return
            self._timer.cancel()
            self._timer = None
        if is_needed:
            self._timer_ends_at = now + pause_seconds
            self._timer = asyncio.create_task(self._serve_after(pause_seconds), name="call budget")

    async def _serve_after(self, pause_seconds: float) -> None:
        await self._clock.sleep(pause_seconds)
        self._timer = None
        self._serve()


_Key = tuple[str, str, str]
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, CallBudget]] = WeakKeyDictionary()


def shared_budget(
    endpoint: str,
    project: str,
    location: str,
    *,
    clock: Clock,
    calls_per_minute: int = CALLS_PER_MINUTE,
    submissions_per_minute: int = SUBMISSIONS_PER_MINUTE,
) -> CallBudget:
    """Return the one budget of a project and region in the running event loop.

    Of those who share it the lowest numbers hold, and the clock of the first. It lasts as long as the
    loop: who comes back within a minute must not send as if nothing had been sent.
    """
    budgets = _shared.setdefault(asyncio.get_running_loop(), {})
    key = (endpoint, project, location)
    if key not in budgets:
        budgets[key] = CallBudget(
            clock=clock,
            calls_per_minute=calls_per_minute,
            submissions_per_minute=submissions_per_minute,
        )
    budgets[key].lower_to(calls_per_minute=calls_per_minute, submissions_per_minute=submissions_per_minute)
    return budgets[key]
