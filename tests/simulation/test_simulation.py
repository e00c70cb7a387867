"""The agent in virtual time against models of W&B, Vertex AI and Prefect; `make simulate` does far more."""

from __future__ import annotations

import pytest

from tests.simulation.exhaustive import SCRIPTS_WITH_GAPS, die_everywhere, stand_every_gap
from tests.simulation.faults import SYSTEMS, Loss
from tests.simulation.scripts import SCRIPTS
from tests.simulation.simulate import Change, play, simulate, sit_out

SEEDS = 12
# In which something was found: a slot kept after an adoption that failed, a duplicate of two agents' making.
TELLING_SEEDS = (132, 1004)
# So much of what `make simulate` plays in full.
EVERY = 4
GAP_STEP_SECONDS = 40.0
HOURS = 2.0
# Longer than it takes until a dead agent is replaced and has looked for a job again.
LAG_SECONDS = 60.0


@pytest.mark.slow
def test_an_agent_may_die_at_any_effect_of_a_happy_launch() -> None:
    results = die_everywhere(SCRIPTS["happy"])

    assert {result.jobs for result in results} == {1}


@pytest.mark.parametrize("change", Change)
def test_a_job_is_seen_through_although_the_queue_was_changed_since(change: Change) -> None:
    results = die_everywhere(SCRIPTS["happy"], change=change, step=EVERY)

    assert {result.jobs for result in results} == ({1} if change is Change.REGION else {0, 1})


@pytest.mark.parametrize("name", ["happy", pytest.param("stopped at W&B", marks=pytest.mark.slow)])
def test_a_duplicate_that_comes_to_light_late_is_found_and_no_end_is_taken_for_the_launch_s(
    name: str,
) -> None:
    results = die_everywhere(SCRIPTS[name], lag_seconds=LAG_SECONDS, step=EVERY)

    assert any(result.duplicates for result in results)


@pytest.mark.parametrize("name", SCRIPTS_WITH_GAPS)
@pytest.mark.slow
def test_an_agent_may_be_cut_off_from_prefect_or_stand_still_beside_another_one(name: str) -> None:
    assert stand_every_gap(SCRIPTS_WITH_GAPS[name], GAP_STEP_SECONDS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_fault_every_script_ends(name: str) -> None:
    assert play(SCRIPTS[name]).deaths == 0


@pytest.mark.parametrize("loss", [loss for loss in Loss if loss is not Loss.NOTHING])
@pytest.mark.parametrize("systems", [*((system,) for system in SYSTEMS), SYSTEMS])
def test_an_outage_of_hours_is_sat_out(systems: tuple[str, ...], loss: Loss) -> None:
    result = sit_out(systems, loss, HOURS)

    assert result.virtual_seconds > HOURS * 3600


@pytest.mark.parametrize("seed", [*range(SEEDS), *TELLING_SEEDS])
def test_whatever_goes_wrong_the_invariants_hold(seed: int) -> None:
    simulate(seed)
