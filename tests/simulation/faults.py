"""What goes wrong on the way to a remote system and back, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import NamedTuple

SYSTEMS = ("wandb", "vertex", "prefect")
# What a call takes at most when nothing is wrong.
USUAL_SECONDS = 0.05
# What a client waits for an answer.
TIMEOUT_SECONDS = 30.0
# In so many simulations somebody is refused.
REFUSALS_SHARE = 0.3


class Loss(Enum):
    """What of a call is lost: nothing, the request, or the answer to it; or what is refused to the caller."""

    NOTHING = "nothing"
    REQUEST = "request"
    ANSWER = "answer"
    # 401 and 403: the other side does not accept the key, or says no to whose key it is.
    KEY = "key"
    RIGHT = "right"

    @property
    def is_carried_out(self) -> bool:
        """Whether the other side does what was asked for."""
        return self is Loss.NOTHING or self is Loss.ANSWER


class Way(NamedTuple):
    """How one call goes: the seconds there and back, and what is lost."""

    there_seconds: float
    back_seconds: float = 0.0
    loss: Loss = Loss.NOTHING

    @property
    def is_disturbed(self) -> bool:
        """Whether it is lost, refused, or slower than usual."""
        return self.loss is not Loss.NOTHING or self.there_seconds > USUAL_SECONDS or self.back_seconds > 0


@dataclass(frozen=True)
class Outage:
    """A time in which every call to a system fails; `loss` is what it loses.

    With a `place` it is only that agent which is cut off from it.
    """

    system: str
    start: float
    end: float
    loss: Loss
    place: int | None = None


@dataclass(frozen=True)
class Freeze:
    """A time in which the agent at a place stands still, and wakes up none the wiser."""

    place: int
    start: float
    end: float


@dataclass
class Faults:
    """The faults of one simulation, none after `until`; rates are for each call to a system."""

    random: Random
    until: float = 0.0
    loss_rate: dict[str, float] = field(default_factory=dict)
    slow_rate: dict[str, float] = field(default_factory=dict)
    outages: list[Outage] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)

    def way(self, system: str, now: float, place: int) -> Way:
        """Return how a call goes that the agent at a place makes now."""
        there = self.random.uniform(0.01, USUAL_SECONDS)
        if now >= self.until:
            return Way(there)
        for outage in self.outages:
            if (
                outage.system == system
                and outage.start <= now < outage.end
                and (outage.place is None or outage.place == place)
            ):
                return Way(there, 0.0, outage.loss)
        drawn = self.random.random()
        loss_rate = self.loss_rate.get(system, 0.0)
        if drawn < loss_rate:
            return Way(there, 0.0, Loss.REQUEST if drawn < loss_rate / 2 else Loss.ANSWER)
        if drawn < loss_rate + self.slow_rate.get(system, 0.0):
            return self._slow()
        return Way(there)

    def _slow(self) -> Way:
        seconds = self.random.uniform(1.0, 2 * TIMEOUT_SECONDS)
        there = self.random.uniform(0.0, seconds)
        if there >= TIMEOUT_SECONDS:
            return Way(TIMEOUT_SECONDS, 0.0, Loss.REQUEST)
        if seconds >= TIMEOUT_SECONDS:
            return Way(there, TIMEOUT_SECONDS - there, Loss.ANSWER)
        return Way(there, seconds - there)


def draw_faults(random: Random, until: float) -> Faults:
    """Return the faults of a simulation: many, few, or only outages."""
    faults = Faults(random, until)
    intensity = random.choice([0.0, 0.02, 0.05, 0.15])
    for system in SYSTEMS:
        faults.loss_rate[system] = intensity * random.uniform(0.0, 2.0)
        faults.slow_rate[system] = intensity * random.uniform(0.0, 0.5)
    for _ in range(random.choice([0, 0, 1, 1, 2, 3])):
        systems = SYSTEMS if random.random() < 0.2 else (random.choice(SYSTEMS),)
        start = random.uniform(0.0, until)
        length = random.choice([5.0, 30.0, 100.0, 300.0, 900.0]) * random.uniform(0.5, 1.5)
        loss = random.choice([Loss.REQUEST, Loss.REQUEST, Loss.ANSWER])
        faults.outages += [Outage(system, start, min(until, start + length), loss) for system in systems]
    return faults


def add_refusals(faults: Faults, random: Random) -> None:
    """Add times in which systems do not accept the key, or say no."""
    if random.random() < REFUSALS_SHARE:
        for _ in range(random.choice([1, 1, 2])):
            systems = SYSTEMS if random.random() < 0.2 else (random.choice(SYSTEMS),)
            start = random.uniform(0.0, faults.until)
            end = min(faults.until, start + random.choice([5.0, 30.0, 100.0, 300.0, 900.0]))
            loss = random.choice([Loss.KEY, Loss.RIGHT])
            faults.outages += [Outage(system, start, end, loss) for system in systems]


def add_lone_faults(faults: Faults, random: Random, agents: int) -> None:
    """Add what happens to one agent alone, while the others go on: it is cut off, or it stands still."""
    until = faults.until
    for _ in range(random.choice([0, 1, 1, 2])):
        place, start = random.randrange(agents), random.uniform(0.0, until)
        end = min(until, start + random.choice([30.0, 100.0, 300.0, 900.0]) * random.uniform(0.5, 1.5))
        systems = SYSTEMS if random.random() < 0.3 else (random.choice(["prefect", *SYSTEMS]),)
        loss = random.choice([Loss.REQUEST, Loss.REQUEST, Loss.ANSWER])
        faults.outages += [Outage(system, start, end, loss, place) for system in systems]
    for _ in range(random.choice([0, 1, 1, 2])):
        start = random.uniform(0.0, until)
        end = min(until, start + random.choice([10.0, 60.0, 100.0, 300.0]) * random.uniform(0.5, 1.5))
        faults.freezes.append(Freeze(random.randrange(agents), start, end))
