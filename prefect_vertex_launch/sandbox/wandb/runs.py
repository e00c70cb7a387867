"""Runs: what `wandb.init()` creates, its process streams in, and `wandb.Api()` reads back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.ids import run_id, run_key_of
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal, parse_json_object
from prefect_vertex_launch.sandbox.wandb.table import Table


class RunState(StrEnum):
    """The states a run can be in; PENDING is a run that was created for someone else to start."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CRASHED = "crashed"
    KILLED = "killed"


_ALIVE = (RunState.PENDING, RunState.RUNNING)
# What an update through wandb.Api() may do to a state.
_STATE_UPDATES: Mapping[str, tuple[RunState, ...]] = {
    RunState.PENDING: (RunState.RUNNING, RunState.FAILED, RunState.CRASHED),
    RunState.FAILED: (RunState.PENDING, RunState.RUNNING),
}
# Fields of UpsertBucketInput that are kept as they come, by the name of the run's own field.
_PLAIN_FIELDS = {
    "displayName": "display_name",
    "description": "description",
    "notes": "notes",
    "groupName": "group",
    "jobType": "job_type",
    "commit": "commit",
    "host": "host",
    "sweep": "sweep",
    "tags": "tags",
}
_LINE_KINDS = {
    "wandb-history.jsonl": "history",
    "wandb-events.jsonl": "events",
    "output.log": "output",
}


@dataclass
class Run:
    """One run of a project. `config` and `summary` are JSON objects, `heartbeat` is in epoch seconds."""

    entity: str
    project: str
    name: str
    created_at: str
    updated_at: str
    heartbeat: float
    state: str = RunState.RUNNING.value
    stopped: bool = False
    exit_code: int | None = None
    display_name: str | None = None
    description: str | None = None
    notes: str | None = None
    group: str | None = None
    job_type: str | None = None
    commit: str | None = None
    host: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list[str])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    line_counts: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def key(self) -> str:
        """`entity/project/run`."""
        return f"{self.entity}/{self.project}/{self.name}"

    @property
    def id(self) -> str:
        """The global id."""
        return run_id(self.entity, self.project, self.name)


class StreamChunk(BaseModel):
    """Consecutive lines of one streamed file, the first one at line `offset`."""

    offset: int = 0
    content: list[str] = []


class StreamRequest(BaseModel):
    """One file_stream request of a run's process; the last one is `complete` and has the exit code."""

    files: dict[str, StreamChunk] = {}
    complete: bool | None = None
    exitcode: int | None = None


class Runs:
    """The life of runs: upserted, streamed to, stopped, ended by an exit code or by silence.

    A running run that sends nothing for `heartbeat_seconds` has crashed (five minutes at W&B).
    """

    def __init__(self, records: Records, now: Callable[[], datetime], *, heartbeat_seconds: float) -> None:
        self.heartbeat_seconds = heartbeat_seconds
        self._records = records
        self._now = now
        self._runs = Table(records, "run", Run)

    def get(self, entity: str | None, project: str | None, name: str) -> Run | None:
        """Return a run as it stands now, or None."""
        return self._by_key(f"{entity}/{project}/{name}")

    def all(self) -> list[Run]:
        """Return every run as it stands now, oldest first."""
        return [self._settled(run) for run in self._runs]

    def of_project(self, entity: str, project: str) -> list[Run]:
        """Return a project's runs as they stand now, oldest first."""
        return [self._settled(run) for run in self._runs if (run.entity, run.project) == (entity, project)]

    def by_id(self, global_id: str) -> Run:
        """Return the run with this global id.

        Raises:
            WandbRefusal: 404 if there is none.
        """
        run = self._by_key(run_key_of(global_id) or "")
        if run is None:
            raise WandbRefusal(404, "run not found")
        return run

    def upsert(self, entity: str, project: str, values: Mapping[str, Any]) -> tuple[Run, bool]:
        """Create or change a run from an UpsertBucketInput; return it and whether it is new.

        A run named by its global id is only edited. One named by its name is being started, or started
        again if it had ended.

        Raises:
            WandbRefusal: 400 without id and name or for JSON that is none, 404 for an unknown id.
        """
        if values.get("id"):
            run, inserted = self.by_id(values["id"]), False
        elif name := values.get("name"):
            run, inserted = self._started(entity, project, name, values.get("state"))
        else:
            raise WandbRefusal(400, "upsertBucket needs the id or the name of a run")
        for source, target in _PLAIN_FIELDS.items():
            if values.get(source) is not None:
                setattr(run, target, values[source])
        if values.get("config") is not None:
            run.config = parse_json_object(values["config"], what="config")
        if values.get("summaryMetrics") is not None:
            run.summary = parse_json_object(values["summaryMetrics"], what="summaryMetrics")
        self._save(run)
        return run, inserted

    def stream(self, entity: str, project: str, name: str, sent: StreamRequest) -> dict[str, Any]:
        """Take one file_stream request and return its answer; `stopped` interrupts the process.

        A run that nobody created yet is created. Lines are kept by their offset, so a request that is
        sent twice counts once.
        """
        run = self.get(entity, project, name) or self._started(entity, project, name, None)[0]
        run.heartbeat = self._now().timestamp()
        for file_name, chunk in sent.files.items():
            self._take_lines(run, file_name, chunk)
        if sent.complete:
            self._end(run, sent.exitcode or 0)
        elif run.state == RunState.CRASHED:
            run.state = RunState.RUNNING.value
        self._save(run)
        answer: dict[str, Any] = {"exitcode": None, "limits": {}}
        if run.stopped:
            answer["stopped"] = True
        return answer

    def stop(self, run: Run) -> None:
        """Ask a run that has not ended to stop; asking again changes nothing."""
        if run.state in _ALIVE:
            run.stopped = True
            self._save(run)

    def update_state(self, run: Run, state: str) -> None:
        """Set a run's state from outside its process.

        Raises:
            WandbRefusal: 400 for a change that W&B does not allow.
        """
        if run.state not in _STATE_UPDATES.get(state, ()):
            raise WandbRefusal(400, f"cannot update run state from {run.state} to {state}")
        run.state = state
        self._save(run)

    def delete(self, run: Run) -> None:
        """Remove a run and everything it streamed."""
        for kind in _LINE_KINDS.values():
            for key, _ in self._records.all(_lines_kind(run, kind)):
                self._records.delete(_lines_kind(run, kind), key)
        self._runs.delete(run)

    def lines(self, run: Run, kind: str) -> list[str]:
        """Return the lines a run streamed, in order: `history`, `events` or `output`."""
        rows = self._records.all(_lines_kind(run, kind))
        return [row["line"] for _, row in sorted(rows, key=lambda keyed: int(keyed[0]))]

    def history(self, run: Run) -> list[dict[str, Any]]:
        """Return what the run logged, one object with `_step` a row."""
        return [json.loads(line) for line in self.lines(run, "history")]

    def _by_key(self, key: str) -> Run | None:
        run = self._runs.get(key)
        return None if run is None else self._settled(run)

    def _settled(self, run: Run) -> Run:
        silent_seconds = self._now().timestamp() - run.heartbeat
        if run.state == RunState.RUNNING and silent_seconds > self.heartbeat_seconds:
            run.state = RunState.CRASHED.value
            self._save(run)
        return run

    def _started(self, entity: str, project: str, name: str, state: str | None) -> tuple[Run, bool]:
        now = self._now()
        run = self.get(entity, project, name)
        inserted = run is None
        if run is None:
            run = Run(
                entity=entity,
                project=project,
                name=name,
                created_at=now.isoformat(),
                updated_at=now.isoformat(),
                heartbeat=now.timestamp(),
                display_name=name,
            )
        elif run.state not in _ALIVE:
            run.stopped, run.exit_code = False, None
        run.heartbeat = now.timestamp()
        run.state = state or RunState.RUNNING.value
        self._save(run)
        return run, inserted

    def _take_lines(self, run: Run, file_name: str, chunk: StreamChunk) -> None:
        if file_name == "wandb-summary.json" and chunk.content:
            run.summary = parse_json_object(chunk.content[-1], what=file_name)
        kind = _LINE_KINDS.get(file_name)
        if kind is None:
            return
        if kind == "history":
            _check_history(chunk.content)
        for number, line in enumerate(chunk.content, start=chunk.offset):
            self._records.put(_lines_kind(run, kind), str(number), {"line": line})
        run.line_counts[kind] = max(run.line_counts.get(kind, 0), chunk.offset + len(chunk.content))

    def _end(self, run: Run, exit_code: int) -> None:
        run.exit_code = exit_code
        if exit_code == 0:
            run.state = RunState.FINISHED.value
        elif run.stopped:
            run.state = RunState.KILLED.value
        else:
            run.state = RunState.FAILED.value

    def _save(self, run: Run) -> None:
        run.updated_at = self._now().isoformat()
        self._runs.save(run)


def _check_history(lines: Sequence[str]) -> None:
    """Refuse what could not be read again."""
    for line in lines:
        step = parse_json_object(line, what="a line of wandb-history.jsonl").get("_step", 0)
        if not isinstance(step, int):
            raise WandbRefusal(400, "_step of a line of wandb-history.jsonl must be an integer")


def _lines_kind(run: Run, kind: str) -> str:
    return f"run-{kind}:{run.key}"
