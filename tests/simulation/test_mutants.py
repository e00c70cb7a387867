"""`make mutants`: the simulation notices each deliberate breakage of the agent's code, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation import mutants, slot_mutants  # noqa: F401 - they fill the table
from tests.simulation.mutant import LATE_SECONDS, MUTANTS, Deaths, Detector, Mutant, Play, Seed, violation
from tests.simulation.scripts import SCRIPTS

MOST_SEEDS = 150
CONTROL_SEEDS = 8

pytestmark = [pytest.mark.mutants, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_proof_notices_a_mutant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    mutant.apply(monkeypatch)

    noticed = next((error for detector in detectors(mutant) if (error := violation(detector))), None)

    assert noticed is not None, f"mutant {name} went unnoticed: {mutant.what}"
    assert noticed.invariant is not None, f"mutant {name} does not run: {noticed}"
    assert noticed.invariant in mutant.invariants, f"mutant {name} is taken for another one: {noticed}"


@pytest.mark.parametrize(
    "detector",
    [
        *map(Play, SCRIPTS),
        *map(Seed, range(CONTROL_SEEDS)),
        Deaths("happy", LATE_SECONDS),
    ],
    ids=str,
)
def test_without_a_mutant_there_is_nothing_to_notice(detector: Detector) -> None:
    assert violation(detector) is None


def detectors(mutant: Mutant) -> Iterator[Detector]:
    """What may notice a mutant: what did before, then the cheapest first."""
    yield mutant.noticed_by
    yield from map(Play, SCRIPTS)
    yield from map(Seed, range(MOST_SEEDS))
    yield from map(Deaths, SCRIPTS)
