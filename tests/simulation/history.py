"""`python -m tests.simulation.history SEED`: all that happens in one simulation, a line for each effect."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from typing import Any

import pytest

from tests.simulation.simulate import simulate
from tests.simulation.violation import Violation
from tests.simulation.world import World


def main(seed: int, items: int) -> int:
    """Play a seed and print its history; return 1 if it violates an invariant."""
    worlds: list[World] = []

    class RememberedWorld(World):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._last_effects = deque()
            worlds.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.simulation.simulate.World", RememberedWorld)
        try:
            end = str(simulate(seed, items))
            violated = False
        except Violation as error:
            # The last effects, which it ends with, are there already.
            end = str(error).partition("\n\nThe last effects:")[0]
            violated = True
    print(*worlds[0].last_effects, "", end, sep="\n")
    return int(violated)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--items", type=int, default=20)
    options = parser.parse_args()
    sys.exit(main(options.seed, options.items))
