"""A mutant: the agent's code broken on purpose, what is to notice it, and which invariants it may break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.simulation.exhaustive import SCRIPTS_WITH_GAPS, die_everywhere, stand_every_gap
from tests.simulation.scripts import SCRIPTS, End, Script
from tests.simulation.simulate import Change, play, simulate
from tests.simulation.violation import Violation

# Its job runs for longer than a duplicate of it may live.
SCRIPTS_TO_DIE_IN = {
    **SCRIPTS,
    "long": (Script(run_seconds=900.0),),
    "cancelled at once": (Script(ends=(End.NEVER,), cancel_after_seconds=2.0),),
}
# A job that is listed so late is created a second time if whoever created it dies.
LATE_SECONDS = 60.0


@dataclass(frozen=True)
class Play:
    """A script, undisturbed."""

    script: str

    def __call__(self) -> None:
        play(SCRIPTS[self.script])


@dataclass(frozen=True)
class Seed:
    """A simulation with whatever a seed draws."""

    number: int

    def __call__(self) -> None:
        simulate(self.number)


@dataclass(frozen=True)
class Deaths:
    """A script with a death at each of its effects."""

    script: str
    lag_seconds: float = 0.0
    change: Change | None = None

    def __call__(self) -> None:
        script = SCRIPTS_TO_DIE_IN[self.script]
        die_everywhere(script, lag_seconds=self.lag_seconds, change=self.change)


@dataclass(frozen=True)
class Gaps:
    """A script with gaps of one agent, which begin every few seconds, beside another agent."""

    script: str
    step_seconds: float = 5.0

    def __call__(self) -> None:
        stand_every_gap(SCRIPTS_WITH_GAPS[self.script], self.step_seconds)


Detector = Play | Seed | Deaths | Gaps


def violation(detector: Detector) -> Violation | None:
    """Return what a detector says is violated."""
    try:
        detector()
    except Violation as error:
        return error
    return None


Break = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """What is broken, how, what has noticed it before (a hint that saves the search), and what it breaks."""

    what: str
    apply: Break
    noticed_by: Detector
    invariants: frozenset[int]


MUTANTS: dict[str, Mutant] = {}


def noticed_by(detector: Detector, *invariants: int) -> Callable[[Break], Break]:
    """Put a function that breaks something into the table, by its name, with the invariants it may break."""

    def add(apply: Break) -> Break:
        MUTANTS[apply.__name__] = Mutant(apply.__doc__ or "", apply, detector, frozenset(invariants))
        return apply

    return add


async def do_nothing(*_: Any, **__: Any) -> None:
    """Stand for whatever is left out."""
