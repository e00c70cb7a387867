"""What happens to one item: how its jobs end, and who asks for an end of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random


class End(Enum):
    """How one job of an item ends, if nobody ends it before."""

    SUCCESS = "success"
    FAILURE = "failure"
    PREEMPTION = "preemption"
    STOCKOUT = "stockout"
    CANCELLED_IN_CONSOLE = "cancelled in the console"
    NEVER = "never"


@dataclass(frozen=True)
class Script:
    """The fate of one item.

    `ends` are the ends of its jobs, attempt by attempt; the last one stands for all further ones.
    `stop_after_seconds` counts from the program's start, `cancel_after_seconds` from the flow run's
    creation. `refusals` is how often Vertex AI refuses the job for want of quota. `heeds_stop` is whether
    the program ends by itself once its run is stopped.
    """

    ends: tuple[End, ...] = (End.SUCCESS,)
    pending_seconds: float = 20.0
    run_seconds: float = 60.0
    refusals: int = 0
    is_poison: bool = False
    calls_init: bool = True
    stop_after_seconds: float | None = None
    heeds_stop: bool = False
    cancel_after_seconds: float | None = None

    def end_of(self, attempt: int) -> End:
        return self.ends[min(attempt, len(self.ends)) - 1]


HAPPY = Script()
SCRIPTS: dict[str, tuple[Script, ...]] = {
    "happy": (HAPPY,),
    "program fails": (Script(ends=(End.FAILURE,)),),
    "preempted once": (Script(ends=(End.PREEMPTION, End.SUCCESS)),),
    "stopped at W&B": (Script(ends=(End.NEVER,), stop_after_seconds=30.0),),
    "cancelled in Prefect": (Script(ends=(End.NEVER,), cancel_after_seconds=60.0),),
    "quota refused, then granted": (Script(refusals=2),),
    "poison, and a good one behind it": (Script(is_poison=True), HAPPY),
}


def draw(random: Random) -> Script:
    """Return the script of one item."""
    kind = random.choices(
        ["success", "failure", "preempted", "stockout", "stopped", "cancelled", "refused", "poison", "mute",
         "console"],
        [40, 10, 12, 5, 7, 7, 6, 5, 3, 3],
    )[0]  # fmt: skip
    # Some jobs outlast the adoption of their launch; were it all of them, a simulation would take long.
    times = {
        "pending_seconds": random.uniform(0, random.choice([10, 60])),
        "run_seconds": random.uniform(1, random.choice([30, 30, 200])),
    }
    match kind:
        case "failure":
            return Script(ends=(End.FAILURE,), **times)
        case "preempted":
            return Script(ends=(*[End.PREEMPTION] * random.randint(1, 5), End.SUCCESS), **times)
        case "stockout":
            return Script(ends=(End.STOCKOUT, random.choice([End.SUCCESS, End.STOCKOUT])), **times)
        case "stopped":
            return Script(
                ends=(End.NEVER,),
                stop_after_seconds=random.uniform(0, 120),
                heeds_stop=random.random() < 0.5,
                **times,
            )
        case "cancelled":
            return Script(ends=(End.NEVER,), cancel_after_seconds=random.uniform(0, 300), **times)
        case "refused":
            return Script(refusals=random.randint(1, 4), **times)
        case "poison":
            return Script(is_poison=True)
        case "mute":
            return Script(calls_init=False, **times)
        case "console":
            return Script(ends=(End.CANCELLED_IN_CONSOLE,), **times)
        case _:
            return Script(**times)
