"""Repeating a remote call that is safe to repeat: bounded, with full jitter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.errors import Transient

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 20.0
# Who asks for a longer pause is asked again after this one: nobody looks on for a day.
LONGEST_ASKED_PAUSE_SECONDS = 600.0


def asked_pause_seconds(error: BaseException) -> float:
    """Return how long the other side asked us to stay away, at most ten minutes; 0 if it did not ask."""
    asked = error.retry_after_seconds if isinstance(error, Transient) else None
    return min(asked or 0.0, LONGEST_ASKED_PAUSE_SECONDS)


async def retrying(
    call: Callable[[], Awaitable[T]], *, clock: Clock, random: Random, attempts: int = ATTEMPTS
) -> T:
    """Return what `call` returns, trying again while it raises Transient.

    The pause is drawn from 0 to 0.5, 1, 2, … seconds, and never shorter than the other side asked for.
    Raises the last Transient after `attempts` tries, or at once when the other side asked for more than
    20 seconds: so long a pause is the caller's to plan. Any other error is raised at once.
    """

    def pause_seconds(state: RetryCallState) -> float:
        ceiling = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (state.attempt_number - 1))
        error = state.outcome.exception() if state.outcome is not None else None
        return max(random.uniform(0, ceiling), asked_pause_seconds(error) if error else 0.0)

    async for attempt in AsyncRetrying(
        stop=stop_after_attempt(attempts),
        wait=pause_seconds,
        retry=retry_if_exception(_is_worth_a_pause),
        sleep=clock.sleep,
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("tenacity either returns or raises")


def _is_worth_a_pause(error: BaseException) -> bool:
    return isinstance(error, Transient) and asked_pause_seconds(error) <= LONGEST_PAUSE_SECONDS
