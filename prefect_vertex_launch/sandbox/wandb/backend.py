"""W&B's backend, as far as launching, running and reading runs goes: all its state and rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pydantic import SecretStr

from prefect_vertex_launch.sandbox.faults.registry import Faults
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.agents import Agents
from prefect_vertex_launch.sandbox.wandb.artifacts import Artifacts
from prefect_vertex_launch.sandbox.wandb.ids import make_id
from prefect_vertex_launch.sandbox.wandb.items import Items, QueueItem
from prefect_vertex_launch.sandbox.wandb.queues import LAUNCH_PROJECT, Queues, RunQueue
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal
from prefect_vertex_launch.sandbox.wandb.runs import Run, Runs
from prefect_vertex_launch.sandbox.wandb.storage import Storage, run_files_folder
from prefect_vertex_launch.sandbox.wandb.sweeps import Sweep, Sweeps, SweepState
from prefect_vertex_launch.sandbox.wandb.table import Table

USERNAME = "sandbox-user"
_HIDDEN_ENTITY = "hidden-entity"


class WallClock(Protocol):
    """Tells the time; tests hand in one that they advance."""

    def now(self) -> datetime:
        """Return the current time, with a time zone."""
        ...


class _UtcClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Project:
    """A named place for runs, queues and artifacts."""

    id: str
    internal_id: int
    entity: str
    name: str
    created_at: str

    @property
    def key(self) -> str:
        """`entity/project`."""
        return f"{self.entity}/{self.name}"


class WandbBackend:
    """One team, one user and one API key; everything else comes and goes through the wire.

    All state is in `records`: a backend opened on the same records goes on where the last one stopped.
    `lease_seconds` is how long a popped item waits for its ack, `heartbeat_seconds` how long a running
    run may be silent before it counts as crashed. Of the `faults` those apply here that concern what an
    answer means.
    """

    def __init__(
        self,
        records: Records,
        *,
        entity: str,
        api_key: str | SecretStr,
        lease_seconds: float = 60.0,
        heartbeat_seconds: float = 300.0,
        clock: WallClock | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.entity = entity
        self.faults = faults or Faults()
        self.api_key = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
        self._clock: WallClock = clock or _UtcClock()
        self._records = records
        now = self._clock.now
        self._projects = Table(records, "project", Project)
        self.storage = Storage(records)
        self.queues = Queues(records, now)
        self.items = Items(records, now, lease_seconds=lease_seconds)
        self.agents = Agents(records, now)
        self.runs = Runs(records, now, heartbeat_seconds=heartbeat_seconds)
        self.sweeps = Sweeps(records, now)
        self.artifacts = Artifacts(records, self.storage, now)
        self.ensure_project(entity, LAUNCH_PROJECT)

    @property
    def base_url(self) -> str:
        """Where clients reach the backend, e.g. `http://127.0.0.1:8080`; upload URLs start with it."""
        return self.storage.base_url

    @base_url.setter
    def base_url(self, url: str) -> None:
        self.storage.base_url = url.rstrip("/")

    def hide_entity(self, name: str) -> None:
        """Let there be another entity, whose runs are written but never shown to the API key.

        It stands for one that the job's key belongs to and the launch agent's does not.
        """
        self._records.put(_HIDDEN_ENTITY, name, {})

    def is_hidden(self, entity: str | None) -> bool:
        """Return whether an entity's projects are kept from the API key."""
        return entity is not None and self._records.get(_HIDDEN_ENTITY, entity) is not None

    def project(self, entity: str | None, name: str | None) -> Project | None:
        """Return a project, or None; without an entity it is the team's."""
        return self._projects.get(f"{entity or self.entity}/{name}")

    def ensure_project(self, entity: str | None, name: str) -> Project:
        """Return a project, created if it is not there yet.

        Raises:
            WandbRefusal: 403 for an entity that is neither the team nor a hidden one.
        """
        entity = entity or self.entity
        if entity != self.entity and not self.is_hidden(entity):
            raise WandbRefusal(403, "permission denied")
        found = self.project(entity, name)
        if found:
            return found
        number = self._records.next_number("project")
        project = Project(
            id=make_id("Project", number),
            internal_id=number,
            entity=entity,
            name=name,
            created_at=self._clock.now().isoformat(),
        )
        self._projects.save(project)
        return project

    def queue(self, name: str) -> RunQueue:
        """Return one of the team's launch queues.

        Raises:
            WandbRefusal: 400 if there is none of that name.
        """
        return self.queue_in(self.entity, LAUNCH_PROJECT, name)

    def queue_in(self, entity: str, project: str, name: str) -> RunQueue:
        """Return a queue of a project.

        Raises:
            WandbRefusal: 400 if there is none of that name.
        """
        queue = self.queues.named(entity, project, name)
        if queue is None:
            raise WandbRefusal(400, f"could not find run queue {name} in {entity}/{project}")
        return queue

    def delete_queue(self, queue: RunQueue) -> None:
        """Remove a queue and its items."""
        for item in self.items.of_queue(queue):
            self.items.delete(item)
        self.queues.delete(queue)

    def push_raw(self, queue_name: str, text: str) -> str:
        """Put an item on a queue whose run spec is exactly this text, and return the item's id."""
        return self.items.push_raw(self.queue(queue_name), text).id

    def item(self, item_id: str) -> QueueItem | None:
        """Return a queue item as it stands now, or None."""
        return self.items.get(item_id)

    def run(self, project: str, name: str) -> Run | None:
        """Return one of the team's runs as it stands now, or None."""
        return self.runs.get(self.entity, project, name)

    def file(self, project: str, run: str, path: str) -> bytes | None:
        """Return a file that was uploaded to one of the team's runs, or None."""
        return self.storage.read(run_files_folder(self.entity, project, run) + path)

    def put_sweep(
        self, project: str, name: str, state: str = SweepState.RUNNING.value, *, queue: str | None = None
    ) -> Sweep:
        """Create one of the team's sweeps in a state, or put the one there is into that state.

        `queue` is where `wandb launch-sweep` has put its scheduler.
        """
        self.ensure_project(self.entity, project)
        return self.sweeps.put(self.entity, project, name, state, queue)

    def sweep(self, project: str, name: str) -> Sweep | None:
        """Return one of the team's sweeps, or None."""
        return self.sweeps.get(self.entity, project, name)

    def stop_polling(self, agent_id: str) -> None:
        """Ask a launch agent to stop, as the button in W&B's UI does."""
        self.agents.stop_polling(agent_id)
