"""Whose turn it is: items start in the order of the pop, and none waits for a poisoned one."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.job_audit import PAUSE_SECONDS
from tests.simulation.prefect_model import PrefectModel
from tests.simulation.process import Process
from tests.simulation.violation import require
from tests.simulation.wandb_model import ItemState, WandbModel

# A poll of the queue, its calls included.
POLL_SECONDS = 22.0


class Turns:
    """Looks at which items each agent starts, and when."""

    def __init__(self, wandb: WandbModel, prefect: PrefectModel, now: Callable[[], float]) -> None:
        self._wandb = wandb
        self._prefect = prefect
        self._now = now
        self._last_started: dict[Process, int] = {}
        # The agents that started a poisoned item last, and when.
        self._after_poison: dict[Process, float] = {}

    def started(self, process: Process, item_id: str) -> None:
        """A process has made the flow run of an item: in the order in which W&B handed them out."""
        handed_out = [index for index, pop in enumerate(self._wandb.delivered) if
                      pop.agent == process.name and pop.item_id == item_id]  # fmt: skip
        require(bool(handed_out), 13, f"item {item_id} was started by {process.name}, which did not pop it")
        last = self._last_started.get(process, -1)
        require(handed_out[-1] > last, 13, f"{process.name} started item {item_id} out of its turn")
        self._last_started[process] = handed_out[-1]
        self._after_poison.pop(process, None)
        if self._wandb.items[item_id].script.is_poison:
            self._after_poison[process] = self._now()

    def look(self) -> None:
        """Assert that no item waits while an agent that has started a poisoned one could start it too."""
        for process, started in [*self._after_poison.items()]:
            if process.is_dead or process.is_ending:
                del self._after_poison[process]
            elif self._now() - started > POLL_SECONDS:
                self._look_behind(process, started)

    def _look_behind(self, process: Process, started: float) -> None:
        limits = self._prefect.limits.values()
        if self._prefect.has_restarted or any(limit.active_slots >= limit.limit for limit in limits):
            return
        since = max([started, process.disturbed + PAUSE_SECONDS, *(limit.full_until for limit in limits)])
        for item in self._wandb.items.values():
            if self._wandb.state_of(item) is ItemState.PENDING:
                waits = self._now() - max(since, item.pushed, item.leased_until)
                require(
                    waits <= POLL_SECONDS,
                    9,
                    f"item {item.item_id} waits for {waits:.0f} s behind a poisoned one of {process.name}",
                )
