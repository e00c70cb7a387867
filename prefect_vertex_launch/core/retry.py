"""Repeating a remote call that is safe to repeat, and the pauses between its tries."""

from __future__ import annotations

import random as global_random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_never

from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.errors import Transient

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 20.0
# Who asks for a longer pause is asked again after this one: nobody looks on for a day.
LONGEST_ASKED_PAUSE_SECONDS = 600.0


class _Uniform(Protocol):
    def uniform(self, a: float, b: float, /) -> float: ...


def asked_pause_seconds(error: BaseException) -> float:
    """Return how long the other side asked us to stay away, at most ten minutes; 0 if it did not ask."""
    asked = error.retry_after_seconds if isinstance(error, Transient) else None
    return min(asked or 0.0, LONGEST_ASKED_PAUSE_SECONDS)


@dataclass
class Backoff:
    """The pauses between the tries of one thing: each up to twice as long as the one before.

    Attributes:
        first_seconds: The longest that the first pause may be.
        longest_seconds: The longest that any pause may be, unless the other side asks for more.
        least_share: How much of its longest a pause has at the least, from 0 to 1. The rest is drawn.
        random: Where the draws come from.
        failures: How many pauses there were since the last success.
    """

    first_seconds: float
    longest_seconds: float
    least_share: float = 0.5
    random: _Uniform = global_random
    failures: int = 0

    def next_seconds(self, error: BaseException | None = None) -> float:
        """Return the pause after a failure; never a shorter one than the other side asked for."""
        ceiling = min(self.longest_seconds, self.first_seconds * 2 ** min(self.failures, 30))
        self.failures += 1
        drawn = ceiling * self.random.uniform(self.least_share, 1.0)
        return max(drawn, asked_pause_seconds(error) if error is not None else 0.0)

    def reset(self) -> None:
        """Begin with the first pause again, after a success."""
        self.failures = 0


def is_worth_a_pause(error: BaseException) -> bool:
    """Whether a failure is transient, and the other side asked for no more than 20 seconds."""
    return isinstance(error, Transient) and asked_pause_seconds(error) <= LONGEST_PAUSE_SECONDS


async def retrying(
    call: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    backoff: Backoff | None = None,
    random: Random | None = None,
    attempts: int | None = ATTEMPTS,
    retry_if: Callable[[BaseException], bool] = is_worth_a_pause,
    tell: Callable[[BaseException, float], None] | None = None,
) -> T:
    """Return what `call` returns, trying again while it raises what `retry_if` finds worth it.

    Args:
        call: The call.
        clock: Where the time comes from.
        backoff: The pauses. Without one they are drawn from 0 to 0.5, 1, 2, … seconds.
        random: Where the draws come from, if there is no `backoff`.
        attempts: How many tries there are in all; None for no end.
        retry_if: Tells whether an error is worth another try.
        tell: Is told of each error that is, with the seconds until the next try.

    Raises the last error after `attempts` tries, and any other error at once. Where the other side asks for a
    pause of more than 20 seconds the default `retry_if` gives up: so long a pause is the caller's to plan.
    """
    pauses = backoff or Backoff(
        FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, least_share=0.0, random=random or global_random
    )

    def error_of(state: RetryCallState) -> BaseException:
        error = state.outcome.exception() if state.outcome is not None else None
        assert error is not None
        return error

    def tell_of(state: RetryCallState) -> None:
        if tell is not None and state.next_action is not None:
            tell(error_of(state), state.next_action.sleep)

    async for attempt in AsyncRetrying(
        stop=stop_never if attempts is None else stop_after_attempt(attempts),
        wait=lambda state: pauses.next_seconds(error_of(state)),
        retry=retry_if_exception(retry_if),
        sleep=clock.sleep,
        before_sleep=tell_of,
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("tenacity either returns or raises")
