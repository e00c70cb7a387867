"""W&B as the simulation has it: a run queue, the runs that programs start, launch agents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prefect_vertex_launch.core import states
from prefect_vertex_launch.core.errors import Conflict, NotFound, Problem
from prefect_vertex_launch.wandb.queue import (
    AgentRecord,
    AgentStatus,
    ItemRecord,
    PoppedItem,
    QueueRecord,
    RunPath,
    RunRecord,
)
from tests.simulation.scripts import Script

LEASE_SECONDS = 60.0
ENTITY, QUEUE, RUN_PROJECT = "team", "vertex", "runs"


class ItemState(StrEnum):
    """The states of a run queue item, in W&B's own words."""

    PENDING = "PENDING"
    LEASED = "LEASED"
    CLAIMED = "CLAIMED"
    FAILED = "FAILED"


@dataclass(eq=False)
class Item:
    """A run queue item, its script, and what became of it."""

    item_id: str
    script: Script
    pushed: float
    state: ItemState = ItemState.PENDING
    leased_until: float = 0.0
    run_id: str | None = None
    messages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    is_stopped: bool = False


@dataclass(frozen=True)
class Pop:
    """An item that was handed out, to whom, and whether the answer arrived."""

    item_id: str
    agent: str


class WandbModel:
    """W&B's side. `program_state` tells the state of the program of a run, None before it shows up."""

    def __init__(self, now: Callable[[], float], spec_of: Callable[[Script], dict[str, Any]]) -> None:
        self._now = now
        self._spec_of = spec_of
        self.items: dict[str, Item] = {}
        self.item_of_run: dict[str, Item] = {}
        self.program_state: Callable[[str], str | None] = lambda _: None
        self.agents: dict[str, AgentStatus] = {}
        self.stops_polling = False
        self.delivered: list[Pop] = []
        # The items that have changed since somebody last looked.
        self.touched: dict[str, None] = {}

    def push(self, script: Script) -> Item:
        item = Item(str(1000 + len(self.items)), script, self._now())
        self.items[item.item_id] = item
        return item

    def state_of(self, item: Item) -> ItemState:
        if item.state is ItemState.LEASED and self._now() >= item.leased_until:
            return ItemState.PENDING
        return item.state

    def pop(self) -> PoppedItem | None:
        for item in self.items.values():
            if self.state_of(item) is ItemState.PENDING:
                item.state = ItemState.LEASED
                item.leased_until = self._now() + LEASE_SECONDS
                self.touched[item.item_id] = None
                return PoppedItem(item.item_id, self._spec_of(item.script), None, 500)
        return None

    def acknowledge(self, item_id: str, run_id: str) -> None:
        item = self.items[item_id]
        state = self.state_of(item)
        # W&B refuses to give a failed one again; whoever reads it then sees whose it was (wandb_queue).
        if state in {ItemState.CLAIMED, ItemState.FAILED} and item.run_id == run_id:
            return
        if state is not ItemState.LEASED:
            raise Conflict(Problem(f"item {item_id}", f"it is {state.value}, of run {item.run_id}"))
        item.state, item.run_id = ItemState.CLAIMED, run_id
        self.item_of_run[run_id] = item
        self.touched[item_id] = None

    def fail(self, item_id: str, message: str) -> None:
        item = self.items[item_id]
        item.state = ItemState.FAILED
        item.messages.append(message)
        self.touched[item_id] = None

    def warn(self, item_id: str, message: str) -> None:
        self.items[item_id].warnings.append(message)

    def read_item(self, item_id: str) -> ItemRecord:
        item = self.items[item_id]
        return ItemRecord(item_id, states.ItemState(self.state_of(item)), item.run_id)

    def read_runs(self, runs: list[RunPath]) -> dict[RunPath, RunRecord]:
        found: dict[RunPath, RunRecord] = {}
        for run in runs:
            item = self.item_of_run.get(run.run_id)
            if item is not None and (state := self.program_state(run.run_id)) is not None:
                found[run] = RunRecord(state, item.is_stopped)
        return found

    def read_run_state(self, run_id: str) -> str | None:
        return self.program_state(run_id)

    def register(self) -> AgentRecord:
        agent_id = f"agent-{len(self.agents)}"
        self.agents[agent_id] = AgentStatus.POLLING
        return AgentRecord(agent_id, f"name-{agent_id}", "POLLING", stop_polling=False)

    def read_agent(self, agent_id: str) -> AgentRecord:
        if agent_id not in self.agents:
            raise NotFound(Problem(f"agent {agent_id}", "W&B does not know it"))
        return AgentRecord(agent_id, f"name-{agent_id}", self.agents[agent_id].value, self.stops_polling)

    def heartbeat(self, agent_id: str, status: AgentStatus) -> None:
        self.agents[agent_id] = status

    def find_queue(self) -> QueueRecord:
        return QueueRecord("queue-1", QUEUE, "gcp-vertex", None, None)
