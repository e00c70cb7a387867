"""Named points at which an agent's process kills itself: before one of its effects, or right after it.

Right after an effect means that the answer has come and nobody has seen it yet: whatever the process
would have made of it is gone, as when the answer is lost on the way.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Effect:
    """A method with an effect outside of the process; with `needs_result` a call that got None has none."""

    module: str
    owner: str
    method: str
    needs_result: bool = False


EFFECTS = {
    "take a slot": Effect("flows.slots", "Slots", "try_take", needs_result=True),
    "pop": Effect("vertex_launch.wandb_queue", "WandbQueue", "pop", needs_result=True),
    "create the flow run": Effect("flows.launch_runs", "LaunchRuns", "create", needs_result=True),
    "acknowledge": Effect("vertex_launch.wandb_queue", "WandbQueue", "acknowledge"),
    "list": Effect("vertex_launch.vertex_jobs", "VertexJobs", "list"),
    "create": Effect("vertex_launch.vertex_jobs", "VertexJobs", "create"),
    "report": Effect("vertex_launch.wandb_queue", "WandbQueue", "fail"),
    "release the slot": Effect("flows.slots", "Slots", "release"),
    "take over": Effect("flows.launch_runs", "LaunchRuns", "take_over"),
}
BEFORE, AFTER = "before", "after"
POINTS = [(when, effect) for effect in EFFECTS for when in (BEFORE, AFTER)]


def arm(when: str, name: str, nth: int) -> None:
    """Let this process end by SIGKILL before or after the `nth` time that an effect is about to happen."""
    effect = EFFECTS[name]
    owner = getattr(importlib.import_module(effect.module), effect.owner)
    original: Callable[..., Any] = getattr(owner, effect.method)
    entered = left = 0

    @functools.wraps(original)
    async def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal entered, left
        entered += 1
        if when == BEFORE and entered == nth:
            die()
        result = await original(*arguments, **options)
        left += not (effect.needs_result and result is None)
        if when == AFTER and left == nth:
            die()
        return result

    setattr(owner, effect.method, deadly)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
