"""What happened, read from W&B's, Vertex AI's and Prefect's side alone, and what of it must not have.

Nothing here knows our code: items and jobs come from the sandbox's state file and its request log, flow
runs and limits from Prefect's REST API. A job and its item belong together by the documented label.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from prefect_vertex_launch.core.identity import QueueIdentity


@dataclass(frozen=True, slots=True)
class Item:
    """A run queue item at W&B, with the messages of all its failures."""

    item_id: str
    state: str
    run_id: str | None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A CustomJob: `key` and `attempt` are the labels by which it belongs to an item."""

    name: str
    key: str
    attempt: str
    state: str
    created: float
    ended: float | None = None

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.ended is None


@dataclass(frozen=True, slots=True)
class FlowRun:
    """A launch at Prefect."""

    flow_run_id: str
    item_id: str
    state: str
    run_count: int = 1


@dataclass(frozen=True, slots=True)
class Expected:
    """How an item is to end: its state at W&B, its job's state (None: no job), its flow run's state.

    `says` is part of what W&B is told, `earlier` the states of the jobs of earlier attempts.
    """

    item: str
    job: str | None
    flow_run: str
    says: str = ""
    earlier: tuple[str, ...] = ()

    @property
    def jobs(self) -> list[str]:
        """The states of all its jobs, by attempt."""
        return [*self.earlier] if self.job is None else [*self.earlier, self.job]


@dataclass
class Evidence:
    """All that was seen of one queue in the end.

    `leaked_slots` are held although every item and every lease of a dead agent has ended. `held_slots` are
    so after the last agents were asked to end: no more than `slots_in_hand`, which they then had in hand.
    `cancelled` are the jobs, by their last names, for which Vertex AI was asked to cancel them.
    `flow_run_ids` has every flow run ever seen of an item, `watched` what was wrong while things ran.
    """

    items: Sequence[Item]
    jobs: Sequence[Job]
    flow_runs: Sequence[FlowRun]
    leaked_slots: int
    held_slots: int
    slots_in_hand: int
    max_jobs: int
    queue: QueueIdentity
    expected: Mapping[str, Expected]
    calls: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    cancelled: set[str] = field(default_factory=set[str])
    flow_run_ids: Mapping[str, set[str]] = field(default_factory=dict[str, set[str]])
    watched: Sequence[str] = ()


def violations(evidence: Evidence) -> list[str]:
    """Return every broken promise, in words."""
    return [
        *_lost(evidence),
        *_doubled(evidence),
        *_too_many(evidence),
        *_leaked(evidence),
        *_wrong_ends(evidence),
        *_replaced(evidence),
        *_cancelled(evidence),
        *evidence.watched,
    ]


def _lost(evidence: Evidence) -> Iterator[str]:
    there = {item.item_id for item in evidence.items}
    flow_runs = {run.item_id for run in evidence.flow_runs}
    for item_id in evidence.expected:
        if item_id not in there:
            yield f"item {item_id} is not at W&B any more"
        if item_id not in flow_runs:
            yield f"item {item_id} has no launch at Prefect"


def _doubled(evidence: Evidence) -> Iterator[str]:
    attempts: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in evidence.jobs:
        attempts[job.key, job.attempt].append(job)
    keys = {evidence.queue.item_key(item_id): item_id for item_id in evidence.expected}
    for (key, attempt), jobs in attempts.items():
        if len(jobs) > 1:
            names = ", ".join(f"{job.name} ({job.state})" for job in jobs)
            yield f"item {keys.get(key, key)} has {len(jobs)} jobs for attempt {attempt}: {names}"
        if key not in keys:
            yield f"job {jobs[0].name} belongs to no item"


def _too_many(evidence: Evidence) -> Iterator[str]:
    if (most := most_live(evidence.jobs)) > evidence.max_jobs:
        yield f"{most} jobs were live at once; max_jobs is {evidence.max_jobs}"


def _leaked(evidence: Evidence) -> Iterator[str]:
    if evidence.leaked_slots:
        yield f"{evidence.leaked_slots} slots are held, and nobody has them"
    if evidence.held_slots > evidence.slots_in_hand:
        yield f"{evidence.held_slots} slots are held; agents ended with {evidence.slots_in_hand} in hand"


def _wrong_ends(evidence: Evidence) -> Iterator[str]:
    items = {item.item_id: item for item in evidence.items}
    flow_runs = {run.item_id: run for run in evidence.flow_runs}
    jobs: dict[str, list[Job]] = defaultdict(list)
    for job in evidence.jobs:
        jobs[job.key].append(job)
    for item_id, expected in evidence.expected.items():
        if item_id in items:
            yield from _wrong_item(items[item_id], expected)
        # A second job of an attempt is another violation.
        by_attempt = {job.attempt: job.state for job in jobs[evidence.queue.item_key(item_id)]}
        if (states := [by_attempt[attempt] for attempt in sorted(by_attempt)]) != expected.jobs:
            yield f"the jobs of item {item_id} are {states}; {expected.jobs} were to be expected"
        run = flow_runs.get(item_id)
        if run is not None and run.state != expected.flow_run:
            yield f"the launch of item {item_id} is {run.state} and not {expected.flow_run}"


def _wrong_item(item: Item, expected: Expected) -> Iterator[str]:
    if item.state != expected.item:
        yield f"item {item.item_id} is {item.state} and not {expected.item}: {item.failures}"
    told = set(item.failures)
    if len(told) != (expected.item == "FAILED"):
        yield f"item {item.item_id} was told {len(told)} different ends: {sorted(told)}"
    if any(expected.says not in message for message in told):
        yield f"item {item.item_id} was told another end than {expected.says!r}: {sorted(told)}"


def _replaced(evidence: Evidence) -> Iterator[str]:
    seen: dict[str, set[str]] = defaultdict(set)
    for item_id, ids in evidence.flow_run_ids.items():
        seen[item_id] |= ids
    for run in evidence.flow_runs:
        seen[run.item_id].add(run.flow_run_id)
    for item_id, ids in seen.items():
        if len(ids) > 1:
            yield f"item {item_id} had {len(ids)} flow runs: {sorted(ids)}"


def _cancelled(evidence: Evidence) -> Iterator[str]:
    wanted = {
        evidence.queue.item_key(item)
        for item, its in evidence.expected.items()
        if "JOB_STATE_CANCELLED" in its.jobs
    }
    may_be = {job.name.rpartition("/")[2] for job in evidence.jobs if job.key in wanted}
    for job_id in sorted(evidence.cancelled - may_be):
        yield f"job {job_id} was cancelled and nobody had asked for it"
    for job_id in sorted(may_be - evidence.cancelled):
        yield f"job {job_id} was to be cancelled and was not"


def most_live(jobs: Sequence[Job]) -> int:
    """Return how many jobs were live at once at most, from create to end as Vertex AI has them."""
    moments = [(job.created, 1) for job in jobs]
    moments += [(job.ended, -1) for job in jobs if job.ended is not None]
    live = most = 0
    for _, change in sorted(moments):  # at the same moment ends come first
        live += change
        most = max(most, live)
    return most


def most_in_a_minute(moments: Sequence[float]) -> int:
    """Return how many of these moments lie in the busiest 60 seconds."""
    ordered, most, start = sorted(moments), 0, 0
    for end, moment in enumerate(ordered):
        while moment - ordered[start] >= 60:
            start += 1
        most = max(most, end - start + 1)
    return most


def read_state(path: Path) -> tuple[list[Item], list[Job]]:
    """Return items and jobs from the state file of a sandbox that has ended."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT kind, value FROM record ORDER BY place").fetchall()
    records: dict[str, list[Any]] = defaultdict(list)
    for kind, value in rows:
        records[kind].append(json.loads(value))
    items = [
        Item(
            row["id"],
            row["state"],
            row["associated_run_id"],
            tuple(notice["message"] for notice in row["notices"] if notice["kind"] == "error"),
        )
        for row in records["run-queue-item"]
    ]
    return items, [read_job(row["job"]) for row in records["vertex_job"]]


def read_job(job: Mapping[str, Any]) -> Job:
    """Return a CustomJob from Vertex AI's JSON."""
    labels = job.get("labels", {})
    return Job(
        name=job["name"],
        key=labels.get("launch-item", ""),
        attempt=labels.get("launch-attempt", ""),
        state=job["state"],
        created=_seconds(job["createTime"]),
        ended=_seconds(job["endTime"]) if "endTime" in job else None,
    )


def _seconds(text: str) -> float:
    # Protobuf writes up to nine digits, Python reads six.
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def read_calls(request_log: Path) -> dict[str, list[float]]:
    """Return when each method of Vertex AI was called, from the sandbox's request log."""
    calls: dict[str, list[float]] = defaultdict(list)
    for said in _vertex_calls(request_log):
        calls[said["operation"]].append(datetime.fromisoformat(said["time"]).timestamp())
    return calls


def read_cancelled(request_log: Path) -> set[str]:
    """Return the last names of the jobs that Vertex AI was asked to cancel."""
    calls = _vertex_calls(request_log)
    return {
        said["request"]["name"].rpartition("/")[2] for said in calls if said["operation"] == "CancelCustomJob"
    }


def _vertex_calls(request_log: Path) -> Iterator[Any]:
    with request_log.open() as lines:
        for line in lines:
            # A line that a killed sandbox was writing has no end.
            if '"server": "vertex-grpc"' in line and line.endswith("}\n"):
                yield json.loads(line)


class PrefectSide:
    """One queue's launches and slots, as Prefect's REST API shows them."""

    def __init__(self, api_url: str, *, queue_tag: str, limit_name: str) -> None:
        self._http = httpx.AsyncClient(base_url=api_url, timeout=30)
        self._queue_tag = queue_tag
        self._limit_name = limit_name

    async def flow_runs(self) -> list[FlowRun]:
        """Return the launches of the queue."""
        found: list[FlowRun] = []
        while True:
            body = {
                "flows": {"name": {"any_": ["launch"]}},
                "flow_runs": {"tags": {"all_": [self._queue_tag]}},
                "sort": "START_TIME_ASC",
                "limit": 200,
                "offset": len(found),
            }
            response = await self._http.post("/flow_runs/filter", json=body)
            response.raise_for_status()
            page = response.json()
            found += [
                FlowRun(
                    run["id"], run["parameters"]["item"]["item_id"], run["state"]["type"], run["run_count"]
                )
                for run in page
            ]
            if len(page) < 200:
                return found

    async def count_ended(self) -> int:
        """Return how many launches have ended."""
        ends = {"type": {"any_": ["COMPLETED", "FAILED", "CANCELLED"]}}
        body = {
            "flows": {"name": {"any_": ["launch"]}},
            "flow_runs": {"tags": {"all_": [self._queue_tag]}, "state": ends},
        }
        response = await self._http.post("/flow_runs/count", json=body)
        response.raise_for_status()
        return response.json()

    async def noted(self) -> str:
        """Return what the launches of the queue have noted, as one text."""
        body = {"flow_runs": {"tags": {"all_": [self._queue_tag]}}, "limit": 200, "sort": "START_TIME_DESC"}
        response = await self._http.post("/flow_runs/filter", json=body)
        response.raise_for_status()
        return json.dumps([run["labels"] for run in response.json()])

    async def cancel(self, flow_run_id: str) -> None:
        """Cancel a launch, as the button of Prefect's UI does."""
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        (await self._http.post(f"/flow_runs/{flow_run_id}/set_state", json=body)).raise_for_status()

    async def end_lease(self, lease: str) -> None:
        """End a lease before its time."""
        path = "/v2/concurrency_limits/decrement-with-lease"
        (await self._http.post(path, json={"lease_id": lease})).raise_for_status()

    async def held_slots(self) -> int:
        """Return how many slots of the queue's limit are held."""
        response = await self._http.get(f"/v2/concurrency_limits/{self._limit_name}")
        response.raise_for_status()
        return response.json()["active_slots"]


def repeated_reports(items: Sequence[Item]) -> int:
    """Return how often an end was told again in the same words."""
    return sum(count - 1 for item in items for count in Counter(item.failures).values())
