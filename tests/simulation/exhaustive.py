"""One death at every effect of a script: before it, after it but before its answer, and after that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.simulation.agents import Shape
from tests.simulation.scripts import Script
from tests.simulation.simulate import Change, Result, play
from tests.simulation.world import Crash, Moment


def deaths(script: Sequence[Script], lag_seconds: float = 0.0, shape: Shape | None = None) -> Iterator[Crash]:
    """Every way in which an agent can die on a script, played once undisturbed to count its effects."""
    undisturbed = play(script, lag_seconds=lag_seconds, shape=shape)
    for effect in range(1, undisturbed.effects + 1):
        if effect not in undisturbed.abandoned:
            for moment in Moment:
                yield Crash(effect, moment)


def die_everywhere(
    script: Sequence[Script],
    lag_seconds: float = 0.0,
    change: Change | None = None,
    shape: Shape | None = None,
) -> list[Result]:
    """Play a script with each death. Raises Violation for the first that breaks an invariant.

    Whoever comes after the death has the queue's block with a `change`.
    """
    results: list[Result] = []
    for crash in deaths(script, lag_seconds, shape):
        result = play(script, crash=crash, lag_seconds=lag_seconds, change=change, shape=shape)
        assert result.deaths == 1, f"{crash} did not happen"
        results.append(result)
    return results
