"""One place under a queue's limits: the lease that holds it, and the launch that it is for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from math import inf
from uuid import UUID

from prefect_vertex_launch.coordination.launch_record import NO_SLOT


class SlotLost(Exception):
    """A launch that is to create a job has no slot any more, or may have none."""


@dataclass(eq=False, slots=True)
class Slot:
    """One place under the limit, for one launch.

    Attributes:
        lease_id: The lease that holds it; None while it is owed one.
        flow_run_id: The launch's flow run, which notes a lease that is taken anew.
        renewed: When the lease was last taken or renewed, as far as this process knows.
        sure_until: Until when nobody can have the place of a lease that was last renewed then.
        is_counted: Whether Prefect counts it although it has forgotten the lease.
        noted: What the flow run notes of it.
        admits: Set while the launch may create a job under it. It is cleared when the lease is lost, or may
            be, and set again once every job that may run has its own slot.
    """

    lease_id: UUID | None = None
    flow_run_id: UUID | None = None
    renewed: float | None = None
    sure_until: float = inf
    is_counted: bool = False
    noted: str = NO_SLOT
    admits: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        """The slot as a flow run notes it."""
        return NO_SLOT if self.lease_id is None else str(self.lease_id)

    @property
    def is_held(self) -> bool:
        """Whether Prefect counts this slot."""
        return self.lease_id is not None or self.is_counted

    def may_have_ended(self, now: float) -> bool:
        """Whether a lease was not renewed in its turn, so that its place may be somebody else's by now."""
        return self.lease_id is not None and now > self.sure_until
