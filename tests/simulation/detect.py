"""`python -m tests.simulation.detect MUTANT`: which scripts, seeds, deaths and gaps notice a mutant."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator

import pytest

from tests.simulation import mutants, slot_mutants  # noqa: F401 - they fill the table
from tests.simulation.exhaustive import SCRIPTS_WITH_GAPS
from tests.simulation.mutant import MUTANTS, SCRIPTS_TO_DIE_IN, Deaths, Detector, Gaps, Play, Seed, violation
from tests.simulation.scripts import SCRIPTS


def detectors(seeds: int) -> Iterator[Detector]:
    """All that can be tried, the cheapest first."""
    yield from map(Play, SCRIPTS)
    yield from map(Seed, range(seeds))
    yield from map(Deaths, SCRIPTS_TO_DIE_IN)
    yield from map(Gaps, SCRIPTS_WITH_GAPS)


def main(name: str, seeds: int, most: int) -> int:
    """Print the first detectors that notice a mutant, each with what it says; return 1 if none does."""
    with pytest.MonkeyPatch.context() as patch:
        MUTANTS[name].apply(patch)
        tried = ((detector, violation(detector)) for detector in detectors(seeds))
        found = ((detector, error) for detector, error in tried if error)
        count = 0
        for detector, error in itertools.islice(found, most):
            print(detector, str(error).partition("\n")[0], sep=": ", flush=True)
            count += 1
    return int(count == 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mutant", choices=MUTANTS, metavar="MUTANT")
    parser.add_argument("--seeds", type=int, default=150)
    parser.add_argument("--most", type=int, default=3, help="how many to find")
    options = parser.parse_args()
    sys.exit(main(options.mutant, options.seeds, options.most))
