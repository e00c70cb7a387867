"""Who owns a launch: the agent whose flow run its tag names, and since when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from uuid import UUID

from tests.simulation.prefect_model import PrefectModel
from tests.simulation.process import Process
from tests.simulation.violation import require

OWNER_TAG = "agent:"
# An agent looks for what has become another's every 30 s, and a call takes its time.
LOOK_SECONDS = 45.0
# So long after somebody has taken a launch another one may not have seen that yet.
UNSEEN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Owner:
    """An agent's flow run, and since when a launch has been its own.

    `before` is the agent that had it, if what took the launch from it was asked for before that could be
    seen, and came late: nobody could know of that, and it goes on until its next look that is answered.
    """

    agent: UUID
    since: float
    before: UUID | None = None

    def may_write(self, process: Process, began: float, now: float) -> bool:
        """Whether an agent may carry out what it began at a time: its launch, or on its way before."""
        agent, unaware_since = process.flow_run_id, max(self.since, process.disturbed)
        is_unaware = agent == self.before and now <= unaware_since + LOOK_SECONDS
        return agent == self.agent or is_unaware or self.since >= began


@cache
def _agent_of(tag: str) -> UUID:
    return UUID(tag.removeprefix(OWNER_TAG))


class Owners:
    """Who owns each launch, as their tags have it."""

    def __init__(
        self, prefect: PrefectModel, processes: Mapping[UUID, Process], now: Callable[[], float]
    ) -> None:
        self._prefect = prefect
        self._processes = processes
        self._now = now
        self._owners: dict[UUID, Owner] = {}

    def look_at(self, flow_run_id: UUID) -> None:
        """Note who owns a launch that has changed."""
        tags = self._prefect.flow_runs[flow_run_id].tags
        agent = _agent_of(next(tag for tag in tags if tag.startswith(OWNER_TAG)))
        known = self._owners.get(flow_run_id)
        if known is None or known.agent != agent:
            asked = self._prefect.asked.get(flow_run_id, self._now())
            is_late = known is not None and asked < known.since + UNSEEN_SECONDS
            before = known.agent if known is not None and is_late else None
            self._owners[flow_run_id] = Owner(agent, self._now(), before)

    def writes(self, process: Process, item_id: str, invariant: int) -> Callable[[], None]:
        """A process begins a call that writes for an item; return what to assert once it is carried out.

        What was on its way already when another agent took the launch over may still arrive.
        """
        began = self._now()

        def may_write() -> None:
            if (flow_run_id := self._prefect.launches.get(item_id)) is not None:
                owner = self._owners[flow_run_id]
                require(
                    owner.may_write(process, began, self._now()),
                    invariant,
                    f"{process.name} wrote for item {item_id}, another agent's since {owner.since:.1f} s",
                )

        return may_write

    def since(self, item_id: str) -> float:
        """Since when a launch has been its owner's."""
        return self._owners[self._prefect.launches[item_id]].since

    def at_work(self, item_id: str) -> Process | None:
        """Return the process that owns a launch; None if it is gone or about to leave."""
        process = self._processes[self._owners[self._prefect.launches[item_id]].agent]
        return None if process.is_dead or process.is_ending else process
