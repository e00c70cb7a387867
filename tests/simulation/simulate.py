"""One simulation: a world, items, faults and agents, from the first pop to the last report."""

from __future__ import annotations

import asyncio
import logging
import random as global_random
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache
from random import Random
from typing import Any

import httpx

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.core.errors import LaunchError
from tests.simulation import scripts
from tests.simulation.agents import Deployment, Shape, make_block
from tests.simulation.faults import Faults, Freeze, Loss, Outage, add_lone_faults, add_refusals, draw_faults
from tests.simulation.process import make_task
from tests.simulation.replay import replay
from tests.simulation.violation import Violation, unforeseen
from tests.simulation.virtual_time import VirtualLoop
from tests.simulation.world import Crash, World

# How long things go wrong, in virtual seconds.
HORIZONS_SECONDS = (300.0, 600.0, 1200.0)
# When every item has to have ended after the last fault, in virtual seconds.
SETTLE_SECONDS = 4 * 3600.0
# How long a lease of a process that is gone may last.
LEASES_END_SECONDS = 330.0
# How long it takes until slots are found that a restarted server counts and nobody holds: an agent looks
# for up to 23 minutes, may hand over in between, and what came up meanwhile is found in a second turn.
MENDING_SECONDS = 5400.0
# In so many simulations the limit is one that queues share.
SHARED_SHARE = 0.2
# In so many every list lags, and no longer than a create without an answer is looked for.
LATE_SHARE = 0.2
MOST_LAG_SECONDS = 9.0
# In so many the block is changed.
CHANGED_SHARE = 0.1
_LOGGERS = ("prefect_vertex_launch", "prefect.vertex-launch")


@dataclass(frozen=True)
class Result:
    """What one simulation came to."""

    effects: int
    items: int
    jobs: int
    deaths: int
    duplicates: int
    virtual_seconds: float
    most_calls: int
    most_submissions: int
    # The effects that never took place, because the process itself gave them up on the way.
    abandoned: frozenset[int] = frozenset()


class Change(Enum):
    """How somebody changes the queue's block, which every agent but the first has then."""

    REGION = "region"
    # The images that it allows: nothing that is not launched yet can be any more.
    LOCKS = "locks"


_CHANGES: dict[Change | None, dict[str, Any]] = {
    None: {},
    Change.REGION: {"location": "europe-west4"},
    Change.LOCKS: {"secure_mode": True, "allowed_images": ["none/such"]},
}


@cache
def _blocks(max_jobs: int, is_shared: bool, change: Change | None) -> list[VertexLaunchQueue]:
    changes = [None, change] if change else [None]
    return [make_block(max_jobs, is_shared=is_shared, **_CHANGES[each]) for each in changes]


def simulate(seed: int, items: int = 20) -> Result:
    """Simulate items with faults drawn from a seed.

    Raises Violation with a test in which it happens again, and the last effects.
    """
    random = Random(seed)
    until = random.choice(HORIZONS_SECONDS)
    faults = draw_faults(random, until)
    max_jobs = random.choice([1, 2, 4, 8, 20])
    restarts = sorted(random.uniform(0, until) for _ in range(random.choice([0, 0, 0, 1, 2])))
    dies = random.choice([None, 120.0, 300.0, 900.0])
    shape = Shape(
        agents=random.choice([1, 1, 1, 2, 3]),
        drain=False,
        max_runtime_minutes=random.choice([None, None, 30.0] if restarts else [None, None, 5.0, 15.0]),
        start_seconds=(1.0, random.choice([5.0, 60.0])),
        dies_every_seconds=dies,
        terminated_share=random.choice([0.0, 0.5, 1.0]),
        unnoticed_share=random.choice([0.0, 0.5]),
    )
    add_refusals(faults, Random(seed + 4))
    if shape.agents > 1:
        add_lone_faults(faults, Random(seed + 2), shape.agents)
    is_shared = Random(seed + 3).random() < SHARED_SHARE
    change = Change.REGION if Random(seed + 5).random() < CHANGED_SHARE else None
    drawn = [scripts.draw(random) for _ in range(items)]
    arrival_seconds = [random.uniform(0, until / 2) if random.random() < 0.3 else 0.0 for _ in drawn]
    lag = random.choice([0.0, 0.0, 0.0, 2.0, 8.0, 60.0])
    shortest_lag = 1.0 if Random(seed + 6).random() < LATE_SHARE else 0.0

    def prepare(world: World) -> None:
        def lag_seconds() -> float:
            if world.loop.time() >= until:
                return 0.0
            return random.uniform(shortest_lag, MOST_LAG_SECONDS if shortest_lag else lag)

        world.vertex.lag_seconds = lag_seconds
        world.vertex.cancel_seconds = lambda: random.choice([1.0, 10.0, 100.0])
        world.vertex.odd_seconds = lambda: random.choice([0.0, 0.0, 0.0, 40.0])
        for script, delay in zip(drawn, arrival_seconds, strict=True):
            if delay:
                world.loop.call_later(delay, world.wandb.push, script)
            else:
                world.wandb.push(script)
        for moment in restarts:
            world.loop.call_later(moment, world.prefect.restart)
            world.loop.call_later(moment, world.note, "Prefect's server", "restarts")

    test = replay(simulate, seed=seed, items=items)
    linger_seconds = MENDING_SECONDS if restarts else 0.0
    blocks = _blocks(max_jobs, is_shared, change)
    return _run(test, seed, faults, shape, blocks, max_jobs, prepare, items, linger_seconds)


def play(
    script: Sequence[scripts.Script],
    *,
    crash: Crash | None = None,
    gap: Outage | Freeze | None = None,
    lag_seconds: float = 0.0,
    shape: Shape | None = None,
    change: Change | None = None,
    seed: int = 0,
) -> Result:
    """Play a script without any fault but the death of an agent at one effect, a gap, and lists that lag.

    Whoever comes after that agent has the queue's block with a `change`.
    """

    def prepare(world: World) -> None:
        world.crash = crash
        world.auditor.may_refuse = change is Change.LOCKS
        world.vertex.lag_seconds = lambda: lag_seconds
        for one in script:
            world.wandb.push(one)

    test = replay(
        play, tuple(script), crash=crash, gap=gap, lag_seconds=lag_seconds, shape=shape, change=change,
        seed=seed,
    )  # fmt: skip
    faults = Faults(
        Random(seed),
        until=gap.end if gap else 0.0,
        outages=[gap] if isinstance(gap, Outage) else [],
        freezes=[gap] if isinstance(gap, Freeze) else [],
    )
    shape = shape or Shape()
    return _run(test, seed, faults, shape, _blocks(2, False, change), 2, prepare, len(script))


def sit_out(systems: Sequence[str], loss: Loss, hours: float) -> Result:
    """Play all scripts at once while systems are away for hours, from the time on when the first jobs run."""
    script = [one for each in scripts.SCRIPTS.values() for one in each]
    until = hours * 3600.0
    faults = Faults(Random(0), until, outages=[Outage(system, 40.0, until, loss) for system in systems])

    def prepare(world: World) -> None:
        for one in script:
            world.wandb.push(one)

    test = replay(sit_out, tuple(systems), loss, hours)
    return _run(test, 0, faults, Shape(), _blocks(4, False, None), 4, prepare, len(script))


def _run(
    test: str,
    seed: int,
    faults: Faults,
    shape: Shape,
    blocks: Sequence[VertexLaunchQueue],
    max_jobs: int,
    prepare: Any,
    items: int,
    linger_seconds: float = 0.0,
) -> Result:
    loop = VirtualLoop()
    loop.set_task_factory(make_task)
    world = World(loop, Random(seed + 1), faults, max_jobs=max_jobs)
    state = global_random.getstate()
    global_random.seed(seed)
    try:
        with _surprises_noted(world):
            for limit_name in blocks[0].shared_limits:
                world.prefect.upsert_limit(limit_name, max_jobs)
            prepare(world)
            deployment = Deployment(world, blocks, shape)
            _complete(loop, _play_out(world, deployment, items, linger_seconds))
    except Exception as error:
        violation = error if isinstance(error, Violation) else unforeseen(repr(error))
        raise violation.told_by(test, "\n".join(world.last_effects)) from error
    finally:
        global_random.setstate(state)
    return Result(
        effects=world.effects,
        items=items,
        jobs=len(world.vertex.jobs),
        deaths=deployment.deaths,
        duplicates=world.auditor.duplicates,
        virtual_seconds=loop.time(),
        most_calls=world.vertex.most_calls,
        most_submissions=world.vertex.most_submissions,
        abandoned=frozenset(world.abandoned),
    )


async def _play_out(world: World, deployment: Deployment, items: int, linger_seconds: float) -> None:
    settled_at: float | None = None
    deadline = world.faults.until + SETTLE_SECONDS

    def is_over() -> bool:
        nonlocal settled_at
        now = world.loop.time()
        if now < world.faults.until or len(world.wandb.items) < items:
            return False
        if now > deadline:
            unsettled = dict(world.auditor.unsettled_items())
            raise Violation(f"at {now:.0f} s not everything has ended: {unsettled}", 10)
        if next(world.auditor.unsettled_items(), None) is not None:
            return False
        settled_at = settled_at or world.loop.time()
        is_mended = not any(limit.active_slots for limit in world.prefect.limits.values())
        return is_mended or world.loop.time() >= settled_at + linger_seconds

    async def all_of_it() -> None:
        await deployment.run(is_over)
        await world.clock.sleep(LEASES_END_SECONDS)
        world.auditor.at_end()

    work = asyncio.ensure_future(all_of_it())
    done, _ = await asyncio.wait({work, world.failed}, return_when=asyncio.FIRST_COMPLETED)
    for one in done:
        one.result()


def _complete(loop: VirtualLoop, work: Coroutine[Any, Any, None]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(work)
    finally:
        for _ in range(20):
            left = asyncio.all_tasks(loop)
            if not left:
                break
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=0.001))
        asyncio.set_event_loop(None)
        loop.close()


class _Surprises(logging.Handler):
    """Notes each error that the code under test logs and had not reckoned with."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Violation):
            self._world.fail(error)
        elif error is not None and not isinstance(error, (LaunchError, httpx.HTTPError)):
            self._world.surprise(f"{record.getMessage()}: {error!r}")


@contextmanager
def _surprises_noted(world: World) -> Iterator[None]:
    handler = _Surprises(world)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.removeHandler(handler)
