"""`make simulate`: a death at every effect of every script, then seeds by the thousand, on all cores."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.agents import Shape
from tests.simulation.exhaustive import die_everywhere
from tests.simulation.scripts import SCRIPTS
from tests.simulation.simulate import Change, Result, simulate

MOST_SHOWN = 5
# The scripts that are played with a change of the queue as well.
CHANGED = ("happy", "preempted once")
# How agents die besides: nobody notices but by the heartbeat that stands still, and another one is at work.
SHAPES = (Shape(unnoticed_share=1.0), Shape(agents=2, unnoticed_share=0.5))
SHAPED = ("happy", "stopped at W&B", "poison, and a good one behind it")
# One simulation leaves little behind, and is faster if nobody looks for it meanwhile.
SEEDS_PER_COLLECTION = 10


def tried(work: Callable[[], list[Result]]) -> tuple[list[Result], str | None]:
    """The results, or what was violated."""
    try:
        return work(), None
    except Exception as error:
        return [], f"{error}"


def one_script(name: str, change: Change | None, shape: Shape | None) -> tuple[list[Result], str | None]:
    return tried(lambda: die_everywhere(SCRIPTS[name], change=change, shape=shape))


def ways_to_die() -> list[tuple[str, Change | None, Shape | None]]:
    """Every script, the queue changed after the death or not, and the shapes in which it is noticed late."""
    return [
        *((name, None, shape) for shape in SHAPES for name in SHAPED),
        *((name, None, None) for name in SCRIPTS),
        *((name, change, None) for name in CHANGED for change in Change),
    ]


def leave_garbage() -> None:
    gc.disable()
    gc.freeze()


def one_seed(items: int, seed: int) -> tuple[list[Result], str | None]:
    if seed % SEEDS_PER_COLLECTION == 0:
        gc.collect()
    return tried(lambda: [simulate(seed, items)])


def main(seeds: int, first: int, items: int) -> int:
    started, failures, sums, deaths = time.monotonic(), [], Counter[str](), 0
    with ProcessPoolExecutor(os.cpu_count(), initializer=leave_garbage) as pool:
        for results, violation in pool.map(one_script, *zip(*ways_to_die(), strict=True)):
            deaths += len(results)
            failures += [violation] if violation else []
        print(
            f"{deaths:,} single deaths in {len(SCRIPTS)} scripts, the queue unchanged or changed afterwards, "
            f"noticed or not, alone or beside another agent: {time.monotonic() - started:.0f} s, "
            f"{len(failures)} violations",
            flush=True,
        )
        started, broken = time.monotonic(), len(failures)
        for results, violation in pool.map(
            partial(one_seed, items), range(first, first + seeds), chunksize=SEEDS_PER_COLLECTION
        ):
            failures += [violation] if violation else []
            for result in results:
                sums.update(
                    items=result.items, effects=result.effects, jobs=result.jobs, deaths=result.deaths,
                    duplicates=result.duplicates,
                )  # fmt: skip
    for violation in failures[:MOST_SHOWN]:
        print(violation, file=sys.stderr)
    figures = ", ".join(f"{count:,} {name}" for name, count in sums.items())
    print(
        f"{seeds} seeds: {figures}, {time.monotonic() - started:.0f} s, {len(failures) - broken} violations"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--items", type=int, default=20)
    options = parser.parse_args()
    sys.exit(main(options.seeds, options.first, options.items))
