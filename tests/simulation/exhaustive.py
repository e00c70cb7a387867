"""Whatever can befall one agent, at every moment of a script: it dies, is cut off from Prefect, stands still.

A death comes at each effect: before it, after it but before its answer, and after that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from tests.simulation.agents import Shape
from tests.simulation.faults import Freeze, Loss, Outage
from tests.simulation.scripts import HAPPY, SCRIPTS, Script
from tests.simulation.simulate import LEASES_END_SECONDS, Change, Result, play
from tests.simulation.world import Crash, Moment

TWO_AGENTS = Shape(agents=2)
# So short that nobody takes an agent for gone; that another one adopts its launches meanwhile; and that
# these have ended as well when it is back.
GAP_SECONDS = (40.0, 120.0, 400.0)
FIRST_GAP_SECONDS = 1.0
SCRIPTS_WITH_GAPS = {
    **{name: SCRIPTS[name] for name in ("preempted once", "program fails", "stopped at W&B")},
    "more than there are slots": (HAPPY,) * 4,
    "more than there are slots, and little quota": (Script(refusals=3),) * 4,
}


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
    step: int = 1,
) -> list[Result]:
    """Play a script with each death, or each `step`-th. Raises Violation if that breaks an invariant.

    Whoever comes after the death has the queue's block with a `change`.
    """
    results: list[Result] = []
    for crash in itertools.islice(deaths(script, lag_seconds, shape), 0, None, step):
        result = play(script, crash=crash, lag_seconds=lag_seconds, change=change, shape=shape)
        assert result.deaths == 1, f"{crash} did not happen"
        results.append(result)
    return results


def gaps(until: float, step_seconds: float) -> Iterator[Outage | Freeze]:
    """Every gap that begins before a time: one agent or all are cut off from Prefect, or one is still."""
    start = FIRST_GAP_SECONDS
    while start < until:
        for place, seconds in itertools.product((*range(TWO_AGENTS.agents), None), GAP_SECONDS):
            end = start + seconds
            yield Outage("prefect", start, end, Loss.REQUEST, place)
            yield Outage("prefect", start, end, Loss.ANSWER, place)
            if place is not None:
                yield Freeze(place, start, end)
        start += step_seconds


def stand_every_gap(script: Sequence[Script], step_seconds: float) -> list[Result]:
    """Play a script with each gap of one agent, while another is at work.

    Raises Violation for the first that breaks an invariant.
    """
    undisturbed = play(script, shape=TWO_AGENTS)
    until = undisturbed.virtual_seconds - LEASES_END_SECONDS
    return [play(script, gap=gap, shape=TWO_AGENTS) for gap in gaps(until, step_seconds)]
