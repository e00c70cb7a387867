"""Sweeps: what a launch asks about them, and what W&B's agent does to one whose scheduler failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.ids import sweep_id
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal
from prefect_vertex_launch.sandbox.wandb.table import Table


class SweepState(StrEnum):
    """The states of a sweep; PENDING is one whose scheduler has not started."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    CANCELED = "CANCELED"


@dataclass
class Sweep:
    """One sweep of a project; `config` is YAML, `name` is what items and runs call its id.

    `queue` is the run queue on which it was launched, if it was.
    """

    entity: str
    project: str
    name: str
    state: str
    created_at: str
    updated_at: str
    method: str = "grid"
    config: str = "method: grid\nparameters: {}\n"
    queue: str | None = None

    @property
    def key(self) -> str:
        """The global id."""
        return sweep_id(self.entity, self.project, self.name)


class Sweeps:
    """Keeps sweeps and their states."""

    def __init__(self, records: Records, now: Callable[[], datetime]) -> None:
        self._now = now
        self._sweeps = Table(records, "sweep", Sweep)

    def get(self, entity: str, project: str, name: str) -> Sweep | None:
        """Return a sweep, or None."""
        return self._sweeps.get(sweep_id(entity, project, name))

    def put(self, entity: str, project: str, name: str, state: str, queue: str | None = None) -> Sweep:
        """Create a sweep in a state, or put the one there is into that state."""
        now = self._now().isoformat()
        sweep = self.get(entity, project, name) or Sweep(
            entity=entity, project=project, name=name, state=state, created_at=now, updated_at=now
        )
        sweep.state, sweep.updated_at = SweepState(state).value, now
        sweep.queue = queue or sweep.queue
        self._sweeps.save(sweep)
        return sweep

    def set_state(self, global_id: str | None, state: str | None) -> Sweep:
        """Change the state of the sweep with this global id.

        Raises:
            WandbRefusal: 400 without an id, for the sandbox makes sweeps by `put_sweep` only, and for a
                state that there is not; 404 for an unknown id.
        """
        if global_id is None:
            raise WandbRefusal(400, "upsertSweep needs the id of a sweep")
        sweep = self._sweeps.get(global_id)
        if sweep is None:
            raise WandbRefusal(404, "sweep not found")
        if state is not None and state not in tuple(SweepState):
            raise WandbRefusal(400, f"{state} is not a state of a sweep")
        return self.put(sweep.entity, sweep.project, sweep.name, state or sweep.state)
