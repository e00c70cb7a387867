"""The agent in virtual time against models of W&B, Vertex AI and Prefect; `make simulate` does far more."""

from __future__ import annotations

import pytest

from tests.simulation.exhaustive import die_everywhere
from tests.simulation.scripts import SCRIPTS
from tests.simulation.simulate import play, simulate

SEEDS = 12


def test_an_agent_may_die_at_any_effect_of_a_happy_launch() -> None:
    results = die_everywhere(SCRIPTS["happy"])

    assert {result.jobs for result in results} == {1}


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_fault_every_script_ends(name: str) -> None:
    assert play(SCRIPTS[name]).deaths == 0


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_goes_wrong_the_invariants_hold(seed: int) -> None:
    simulate(seed)
