"""How many slots an agent had in hand when it died: taken, and no launch had them yet.

Prefect frees those when their lease ends. An agent writes what it does into its log as it does it, and the
log outlives it; a request without an answer counts as granted, so the number is never too low.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

_MARK = "slot-trace"
_ASKED, _GRANTED, _NONE, _GONE = "asked", "granted", "none", "gone"


def trace() -> None:
    """Let this process write into its log which slots it takes, gives back and hands to launches."""
    from flows.launch_runs import LaunchRuns
    from flows.slots import Slots, lease_of

    take, release, create = Slots.try_take, Slots.release, LaunchRuns.create

    @functools.wraps(take)
    async def traced_take(self: Any) -> Any:
        _write(_ASKED)
        slot = await take(self)
        _write(_NONE if slot is None else _GRANTED, slot and slot.lease_id)
        return slot

    @functools.wraps(release)
    async def traced_release(self: Any, slot: Any) -> None:
        lease_id = slot.lease_id
        await release(self, slot)
        _write(_GONE, lease_id)

    @functools.wraps(create)
    async def traced_create(self: Any, item: Any, whereabouts: Any, labels: Any) -> Any:
        flow_run = await create(self, item, whereabouts, labels)
        if flow_run is not None:
            _write(_GONE, lease_of(labels))
        return flow_run

    Slots.try_take, Slots.release, LaunchRuns.create = traced_take, traced_release, traced_create


def slots_in_hand(log: Path) -> int:
    """Return how many slots the agent with this log can have had in hand at its end."""
    asked, granted = 0, set[str]()
    if not log.exists():
        return 0  # it died before it could do anything
    for line in log.read_text(errors="replace").splitlines():
        mark, _, said = line.partition(" ")
        if mark == _MARK:
            what, lease = said.split(" ")
            asked += (what == _ASKED) - (what in {_GRANTED, _NONE})
            if what == _GRANTED:
                granted.add(lease)
            elif what == _GONE:
                granted.discard(lease)
    return asked + len(granted)


def _write(what: str, lease_id: object = None) -> None:
    os.write(2, f"{_MARK} {what} {lease_id}\n".encode())
