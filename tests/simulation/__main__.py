"""`make simulate`: deaths at every effect of every script, gaps, then seeds by the thousand, on all cores."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.garbage import collect_rarely
from tests.simulation.agents import Shape
from tests.simulation.exhaustive import SCRIPTS_WITH_GAPS, die_everywhere, stand_every_gap
from tests.simulation.scripts import SCRIPTS
from tests.simulation.simulate import Change, Result, simulate

MOST_SHOWN = 5
# The scripts that are played with a change of the queue as well.
CHANGED = ("happy", "preempted once")
# How agents die besides: nobody notices but by the heartbeat that stands still, and another one is at work.
SHAPES = (Shape(unnoticed_share=1.0), Shape(agents=2, unnoticed_share=0.5))
SHAPED = ("happy", "stopped at W&B", "poison, and a good one behind it")
# How often a gap begins.
GAP_STEP_SECONDS = 4.0
SEEDS_AT_ONCE = 10


def tried(work: Callable[[], list[Result]]) -> tuple[list[Result], str | None]:
    """The results, or what was violated."""
    try:
        return work(), None
    except Exception as error:
        return [], f"{error}"


def one_script(name: str, change: Change | None, shape: Shape | None) -> tuple[list[Result], str | None]:
    return tried(lambda: die_everywhere(SCRIPTS[name], change=change, shape=shape))


def one_script_with_gaps(name: str) -> tuple[list[Result], str | None]:
    return tried(lambda: stand_every_gap(SCRIPTS_WITH_GAPS[name], GAP_STEP_SECONDS))


def ways_to_die() -> list[tuple[str, Change | None, Shape | None]]:
    """Every script, the queue changed after the death or not, and the shapes in which it is noticed late."""
    return [
        *((name, None, shape) for shape in SHAPES for name in SHAPED),
        *((name, None, None) for name in SCRIPTS),
        *((name, change, None) for name in CHANGED for change in Change),
    ]


def one_seed(items: int, seed: int) -> tuple[list[Result], str | None]:
    return tried(lambda: [simulate(seed, items)])


def main(seeds: int, first: int, items: int) -> int:
    failures: list[str] = []
    with ProcessPoolExecutor(os.cpu_count(), initializer=collect_rarely) as pool:
        collect(
            f"{{single}} single deaths in {len(SCRIPTS)} scripts, the queue unchanged or changed afterwards, "
            "noticed or not, alone or beside another agent",
            pool.map(one_script, *zip(*ways_to_die(), strict=True)),
            failures,
        )
        collect(
            f"{{single}} gaps in {len(SCRIPTS_WITH_GAPS)} scripts, one agent or both cut off, or one still",
            pool.map(one_script_with_gaps, SCRIPTS_WITH_GAPS),
            failures,
        )
        collect(
            f"{seeds:,} seeds: {{sums}}",
            pool.map(partial(one_seed, items), range(first, first + seeds), chunksize=SEEDS_AT_ONCE),
            failures,
        )
    for violation in failures[:MOST_SHOWN]:
        print(violation, file=sys.stderr)
    return 1 if failures else 0


def collect(what: str, tries: Iterable[tuple[list[Result], str | None]], failures: list[str]) -> None:
    """Wait for simulations, print what they came to, and add what was violated to `failures`."""
    started, broken, single, sums = time.monotonic(), len(failures), 0, Counter[str]()
    for results, violation in tries:
        failures += [violation] if violation else []
        single += len(results)
        for result in results:
            sums.update(
                items=result.items, effects=result.effects, jobs=result.jobs, deaths=result.deaths,
                duplicates=result.duplicates,
            )  # fmt: skip
    told = what.format(
        single=f"{single:,}", sums=", ".join(f"{count:,} {name}" for name, count in sums.items())
    )
    seconds = time.monotonic() - started
    print(f"{told}: {seconds:.0f} s, {len(failures) - broken} violations", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--items", type=int, default=20)
    options = parser.parse_args()
    sys.exit(main(options.seeds, options.first, options.items))
