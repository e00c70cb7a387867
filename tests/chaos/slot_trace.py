"""Which slots an agent had when it died: in hand, or those of its launches.

Prefect frees those in hand when their lease ends. An agent writes what it does into its log as it does it,
and the log outlives it.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK = "slot-trace"
_ASKED, _GRANTED, _NONE, _PASSED, _ADOPTED, _GONE = "asked", "granted", "none", "passed", "adopted", "gone"


@dataclass(frozen=True)
class Leases:
    """The leases that an agent has had: at its end in hand or for its launches, and `ever`.

    So many of its requests for one are `unanswered`.
    """

    in_hand: frozenset[str]
    of_launches: frozenset[str]
    ever: frozenset[str]
    unanswered: int

    @property
    def held(self) -> frozenset[str]:
        """Those of its end."""
        return self.in_hand | self.of_launches

    @property
    def most_in_hand(self) -> int:
        """How many slots can have been in hand: each request may have been granted."""
        return len(self.in_hand) + self.unanswered


class _Asking:
    """The requests of this process that have no answer yet."""

    count = 0


def is_asking() -> bool:
    """Whether this process is asking for a slot at the moment."""
    return _Asking.count > 0


def trace() -> None:
    """Let this process write into its log which slots it takes, gives back and hands to launches."""
    _trace_taking()
    _trace_passing()


def _trace_taking() -> None:
    from prefect_vertex_launch.coordination.slots import Slots

    take, take_over = Slots.try_take, Slots.take_over

    @functools.wraps(take)
    async def traced_take(self: Any) -> Any:
        _write(_ASKED)
        _Asking.count += 1
        try:
            slot = await take(self)
        finally:
            _Asking.count -= 1
        _write(_NONE if slot is None else _GRANTED, slot and slot.lease_id)
        return slot

    @functools.wraps(take_over)
    async def traced_take_over(self: Any, labels: Any, flow_run_id: Any) -> Any:
        slot = await take_over(self, labels, flow_run_id)
        _write(_ADOPTED, slot.lease_id)
        return slot

    Slots.try_take, Slots.take_over = traced_take, traced_take_over


def _trace_passing() -> None:
    from prefect_vertex_launch.coordination.launch_record import lease_of
    from prefect_vertex_launch.coordination.launch_store import LaunchStore
    from prefect_vertex_launch.coordination.slots import Slots

    release, create = Slots.release, LaunchStore.create

    @functools.wraps(release)
    async def traced_release(self: Any, slot: Any) -> None:
        lease_id = slot.lease_id
        await release(self, slot)
        _write(_GONE, lease_id)

    @functools.wraps(create)
    async def traced_create(self: Any, item: Any, whereabouts: Any, slot_labels: Any) -> Any:
        flow_run = await create(self, item, whereabouts, slot_labels)
        if flow_run is not None:
            _write(_PASSED, lease_of(slot_labels))
        return flow_run

    Slots.release, LaunchStore.create = traced_release, traced_create


def leases(log: Path) -> Leases:
    """Return what the agent with this log had when it wrote its last line."""
    asked, in_hand, of_launches, ever = 0, set[str](), set[str](), set[str]()
    # One that died before it could do anything has no log.
    for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
        mark, _, said = line.partition(" ")
        if mark != _MARK:
            continue
        what, lease = said.split(" ")
        ever.add(lease)
        asked += (what == _ASKED) - (what in {_GRANTED, _NONE})
        if what in {_PASSED, _ADOPTED, _GONE}:
            in_hand.discard(lease)
            of_launches.discard(lease)
        if what == _GRANTED:
            in_hand.add(lease)
        elif what in {_PASSED, _ADOPTED}:
            of_launches.add(lease)
    return Leases(frozenset(in_hand), frozenset(of_launches), frozenset(ever), asked)


def _write(what: str, lease_id: object = None) -> None:
    os.write(2, f"{_MARK} {what} {lease_id}\n".encode())
