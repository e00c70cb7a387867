"""Prefect's server as the simulation has it: flow runs with states, limits with leases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from math import inf
from typing import Any
from uuid import UUID

import httpx
from prefect import State
from prefect.client.schemas.objects import FlowRun, StateDetails, StateType

from tests.simulation.virtual_time import EPOCH

# Texts that are enum members find themselves sooner in a list than by their hashes.
_FINAL = (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED)
_BLANK = FlowRun.model_construct(parameters={}, tags=[], labels={}, run_count=0, created=EPOCH)
AGENT = "agent"
# How often the server looks for leases that have ended.
REPOSSESSION_SECONDS = 15.0
_DETAILS = StateDetails.model_construct()
_REQUEST = httpx.Request("POST", "http://prefect.invalid/api/")


class Answer:
    """What the server answers, as far as anybody looks at it."""

    def __init__(self, status_code: int, content: Any = None) -> None:
        self.status_code = status_code
        self.text = ""
        self._content = content

    def json(self) -> Any:
        return self._content

    def raise_for_status(self) -> None:
        if self.status_code >= 400:
            raise refusal(self.status_code)


def refusal(status_code: int) -> httpx.HTTPStatusError:
    """Return the error that the client raises for an answer with this status."""
    return httpx.HTTPStatusError(str(status_code), request=_REQUEST, response=_refused(status_code))


@cache
def _refused(status_code: int) -> httpx.Response:
    return httpx.Response(status_code, request=_REQUEST)


@dataclass(eq=False)
class Limit:
    """A global concurrency limit."""

    limit_id: UUID
    name: str
    limit: int
    active_slots: int = 0
    # When the last slot became free again.
    full_until: float = -inf

    def free(self, slots: int, now: float) -> None:
        """Count so many slots less."""
        if self.active_slots >= self.limit:
            self.full_until = now
        self.active_slots = max(0, self.active_slots - slots)


@dataclass(eq=False)
class Lease:
    """A slot under some limits, until it ends."""

    text: str
    names: tuple[str, ...]
    expires: float
    holder: UUID | None


class PrefectModel:
    """Prefect's side."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last_id = 0
        self._swept = 0.0
        self.flow_runs: dict[UUID, FlowRun] = {}
        self.states: dict[UUID, list[State[Any]]] = {}
        self.launches: dict[str, UUID] = {}
        self.items: dict[UUID, str] = {}
        self.agents: list[UUID] = []
        # The launches that have changed since somebody last looked, and whether leases have come or gone.
        self.touched: dict[UUID, None] = {}
        self.are_leases_touched = False
        self.has_restarted = False
        self.by_key: dict[str, UUID] = {}
        self.limits: dict[str, Limit] = {}
        self.variables: dict[str, Any] = {}
        self.leases: dict[UUID, Lease] = {}
        self.flow_id = self.new_id()
        # When the last change of a flow run's tags was asked for.
        self.asked: dict[UUID, float] = {}

    def new_id(self) -> UUID:
        self._last_id += 1
        return UUID(int=self._last_id)

    def create_flow_run(self, body: dict[str, Any]) -> Answer:
        known = self.by_key.get(body["idempotency_key"])
        if known is not None:
            return Answer(200, self.flow_runs[known])
        flow_run_id = self.new_id()
        self.by_key[body["idempotency_key"]] = flow_run_id
        self.flow_runs[flow_run_id] = _BLANK.model_copy(
            update={
                "id": flow_run_id,
                "created": EPOCH + timedelta(seconds=self._now()),
                "flow_id": UUID(str(body["flow_id"])),
                "name": body["name"],
                "parameters": body["parameters"],
                "tags": list(body["tags"]),
                "labels": dict(body.get("labels") or {}),
                "state": self._stamped(StateType(body["state"]["type"]), body["state"].get("name")),
            }
        )
        item_id = next(tag.removeprefix("item:") for tag in body["tags"] if tag.startswith("item:"))
        self.launches[item_id] = flow_run_id
        self.items[flow_run_id] = item_id
        self.touched[flow_run_id] = None
        return Answer(201, self.flow_runs[flow_run_id])

    def start_agent_run(self) -> UUID:
        flow_run_id = self.new_id()
        self.agents.append(flow_run_id)
        state = self._stamped(StateType.RUNNING)
        self.flow_runs[flow_run_id] = _BLANK.model_copy(
            update={"id": flow_run_id, "flow_id": self.flow_id, "name": AGENT, "run_count": 1, "state": state}
        )
        return flow_run_id

    def agent_runs(self, selection: Any) -> list[FlowRun]:
        types = selection.state.type.any_
        runs = (self.flow_runs[flow_run_id] for flow_run_id in self.agents)
        return [run for run in runs if run.state is not None and run.state.type in types]

    def read_flow_runs(self, selection: Any, limit: int | None, offset: int) -> list[FlowRun]:
        ids = selection.id.any_ if selection.id is not None else None
        tags = set(selection.tags.all_ or ()) if selection.tags is not None else set()
        types = selection.state.type.any_ if selection.state is not None else None
        runs = (
            self.flow_runs.values()
            if ids is None
            else [self.flow_runs[run_id] for run_id in ids if run_id in self.flow_runs]
        )
        found = [
            run for run in runs if (types is None or run.state.type in types) and tags.issubset(run.tags)
        ]
        return found[offset : offset + (limit or 200)]

    def update_flow_run(self, flow_run_id: UUID, tags: list[str], asked: float) -> None:
        self.asked[flow_run_id] = asked
        self._change(flow_run_id, tags=list(tags))

    def update_labels(self, flow_run_id: UUID, labels: dict[str, Any]) -> None:
        self._change(flow_run_id, labels={**self.flow_runs[flow_run_id].labels, **labels})

    def set_state(self, flow_run_id: UUID, state: State[Any], *, force: bool) -> State[Any]:
        """Set a state by Prefect's rules and return the state that the run is in then."""
        run = self.flow_runs[flow_run_id]
        assert run.state is not None
        current = run.state.type
        if not force:
            if current is StateType.CANCELLING and state.type is not StateType.CANCELLED:
                return run.state
            if current in _FINAL and state.type in (StateType.CANCELLING, StateType.CRASHED):
                return run.state
        self.states.setdefault(flow_run_id, []).append(state)
        count = run.run_count + (state.type is StateType.RUNNING)
        self._change(flow_run_id, state=self._stamped(state.type, state.name, state.message), run_count=count)
        return self.flow_runs[flow_run_id].state

    def upsert_limit(self, name: str, limit: int) -> None:
        if name in self.limits:
            self.limits[name].limit = limit
        else:
            self.limits[name] = Limit(self.new_id(), name, limit)

    def take(self, names: list[str], seconds: float, holder: UUID | None) -> Answer:
        self.sweep()
        limits = [self.limits[name] for name in names if name in self.limits]
        if any(limit.active_slots >= limit.limit for limit in limits):
            raise refusal(423)
        for limit in limits:
            limit.active_slots += 1
        lease_id = self.new_id()
        names = tuple(limit.name for limit in limits)
        self.leases[lease_id] = Lease(str(lease_id), names, self._now() + seconds, holder)
        self.are_leases_touched = True
        return Answer(
            200,
            {
                "lease_id": lease_id,
                "limits": [
                    {"id": limit.limit_id, "name": limit.name, "limit": limit.limit} for limit in limits
                ],
            },
        )

    def renew(self, lease_id: UUID, seconds: float) -> None:
        self.sweep()
        if lease_id not in self.leases:
            raise refusal(410)
        self.leases[lease_id].expires = self._now() + seconds

    def release(self, lease_id: UUID) -> None:
        self.sweep()
        if lease := self.leases.pop(lease_id, None):
            self._decrement(lease)

    def release_counted(self, names: list[str], slots: int) -> None:
        for name in names:
            self.limits[name].free(slots, self._now())

    def sweep(self) -> None:
        """End the leases that were over when the server last looked."""
        looked = self._now() // REPOSSESSION_SECONDS * REPOSSESSION_SECONDS
        if looked <= self._swept:
            return
        self._swept = looked
        for lease_id, lease in [*self.leases.items()]:
            if lease.expires < looked:
                del self.leases[lease_id]
                self._decrement(lease)

    def restart(self) -> None:
        """Forget the leases, which were kept in memory, and keep the counters, which were not."""
        self.leases.clear()
        self.are_leases_touched = self.has_restarted = True

    def _decrement(self, lease: Lease) -> None:
        self.are_leases_touched = True
        for name in lease.names:
            self.limits[name].free(1, self._now())

    def _change(self, flow_run_id: UUID, **changes: Any) -> None:
        # A copy: whoever has read the run before keeps what was read.
        self.flow_runs[flow_run_id] = self.flow_runs[flow_run_id].model_copy(update=changes)
        if flow_run_id in self.items:
            self.touched[flow_run_id] = None

    def _stamped(
        self, state_type: StateType, name: str | None = None, message: str | None = None
    ) -> State[Any]:
        return State.model_construct(
            id=self.new_id(),
            type=state_type,
            name=name or state_type.value.capitalize(),
            message=message,
            timestamp=EPOCH + timedelta(seconds=self._now()),
            state_details=_DETAILS,
            data=None,
        )
