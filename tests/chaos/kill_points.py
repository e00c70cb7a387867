"""Named points at which an agent's process kills itself: before one of its effects, within it or right after.

Right after an effect means that the answer has come and nobody has seen it yet: whatever the process
would have made of it is gone. Within it means that the server has done what it was asked for and has not
answered: the sandbox cuts the connection there, and the process dies while the call is under way.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from prefect_vertex_launch.core.errors import OutcomeUnknown
from tests.chaos import slot_trace

# Where the sandbox's faults are switched, and the API key that this takes.
Faults = Sequence[str]
FAULT_SECONDS = 5.0
ASKING_SECONDS = 0.005


@dataclass(frozen=True)
class Effect:
    """A method with an effect outside of the process; if it `needs_result`, nothing is none."""

    module: str
    owner: str
    method: str
    needs_result: bool = False


@dataclass(frozen=True)
class Wire:
    """The call by which a server is asked for an effect; `about` is what tells it from all others."""

    server: str
    operation: str
    about: Callable[..., str]


EFFECTS = {
    "take a slot": Effect("prefect_vertex_launch.coordination.slots", "Slots", "try_take", needs_result=True),
    "pop": Effect("prefect_vertex_launch.wandb.queue", "WandbQueue", "pop", needs_result=True),
    "create the flow run": Effect(
        "prefect_vertex_launch.coordination.launch_store", "LaunchStore", "create", needs_result=True
    ),
    "acknowledge": Effect("prefect_vertex_launch.wandb.queue", "WandbQueue", "acknowledge"),
    "list": Effect("prefect_vertex_launch.vertex.jobs", "VertexJobs", "list"),
    "create": Effect("prefect_vertex_launch.vertex.jobs", "VertexJobs", "create"),
    "report": Effect("prefect_vertex_launch.wandb.queue", "WandbQueue", "fail"),
    "release the slot": Effect("prefect_vertex_launch.coordination.slots", "Slots", "release"),
    "take over": Effect("prefect_vertex_launch.coordination.launch_store", "LaunchStore", "_own"),
    "take over the slot": Effect("prefect_vertex_launch.coordination.slots", "Slots", "take_over"),
}
WIRES = {
    "pop": Wire("wandb", "popFromRunQueue", lambda _queue, agent_id: str(agent_id)),
    "acknowledge": Wire("wandb", "ackRunQueueItem", lambda _queue, item_id, *_: item_id),
    "create": Wire("vertex", "CreateCustomJob", lambda _jobs, job: job.labels["launch-item"]),
    "report": Wire("wandb", "failRunQueueItem", lambda _queue, item_id, *_: item_id),
}
BEFORE, UNANSWERED, AFTER = "before", "unanswered", "after"
POINTS = [
    *((when, effect) for effect in EFFECTS for when in (BEFORE, AFTER)),
    *((UNANSWERED, effect) for effect in WIRES),
]


def arm(when: str, name: str, nth: int, faults: Faults) -> None:
    """Let this process end by SIGKILL at the `nth` time that an effect is about to happen."""
    effect = EFFECTS[name]
    owner = getattr(importlib.import_module(effect.module), effect.owner)
    original: Callable[..., Any] = getattr(owner, effect.method)
    cut_off = _cut_off(original, WIRES[name], faults) if when == UNANSWERED else original
    entered = left = 0

    @functools.wraps(original)
    async def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal entered, left
        entered += 1
        if when == BEFORE and entered == nth:
            await die()
        call = cut_off if entered == nth else original
        result = await call(*arguments, **options)
        left += bool(result) or not effect.needs_result
        if when == AFTER and left == nth:
            await die()
        return result

    setattr(owner, effect.method, deadly)


def _cut_off(original: Callable[..., Any], wire: Wire, faults: Faults) -> Callable[..., Any]:
    """Return a method that has the connection cut after its effect, and the process end with it."""

    async def call(*arguments: Any, **options: Any) -> Any:
        about = wire.about(*arguments)
        if not _is_to_be_cut(wire, about, faults):
            return await original(*arguments, **options)
        if wire.server == "wandb":
            _die_of_a_cut(wire.operation, about)
        try:
            return await original(*arguments, **options)
        except OutcomeUnknown:
            await die()

    return call


def _is_to_be_cut(wire: Wire, about: str, faults: Faults) -> bool:
    """Tell the sandbox to cut this call; it cannot be told while it is away."""
    fault = {"server": wire.server, "what": "cut_after", "operation": wire.operation, "about": about}
    url, api_key = faults
    headers = {"Authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(f"{url}/faults", json.dumps(fault).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=FAULT_SECONDS):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _die_of_a_cut(operation: str, about: str) -> None:
    """Let this process end when the connection of such a call breaks: the client would send it again."""
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def deadly(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        try:
            return await send(self, request)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            content = await request.aread()
            if operation.encode() in content and about.encode() in content:
                await die()
            raise

    httpx.AsyncHTTPTransport.handle_async_request = deadly


async def die() -> None:
    """End by SIGKILL, with no request for a slot under way: of one without an answer nobody knows the lease.

    Agents that are killed at a random moment die in such requests too.
    """
    while slot_trace.is_asking():
        await asyncio.sleep(ASKING_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
