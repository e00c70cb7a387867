"""The W&B Launch queue protocol for one queue, as an async client.

Operations and fields are those of the wandb client, which the real server is known to accept; only
the batched read of stop requests is our own, through ordinary GraphQL aliases. A pop is never sent
twice: an item whose answer was lost returns to the queue by itself when its lease ends, about a
minute later.
"""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from importlib.metadata import version
from random import Random
from types import TracebackType
from typing import Any, Self, cast

import httpx
from pydantic import SecretStr

from vertex_launch import wandb_documents as documents
from vertex_launch.clock import Clock, SystemClock
from vertex_launch.errors import (
    AuthenticationFailed,
    Conflict,
    NotFound,
    Permanent,
    Problem,
    Refused,
    Transient,
)
from vertex_launch.lifecycle import ItemState
from vertex_launch.wandb_endpoint import WandbEndpoint
from vertex_launch.wandb_graphql import MAX_ANSWER_BYTES, Operation, WandbGraphql, at
from vertex_launch.wandb_jobs import JobSource, read_job

__all__ = [
    "AgentRecord",
    "AgentStatus",
    "ItemRecord",
    "JobSource",
    "PoppedItem",
    "QueueRecord",
    "RunPath",
    "WandbEndpoint",
    "WandbQueue",
]

# W&B keeps every entity's queues in this project.
QUEUE_PROJECT = "model-registry"
RUNS_PER_REQUEST = 50
_API_KEY_FIELD = "_wandb_api_key"
_ITEM_ID = re.compile(r'"runQueueItemId"\s*:\s*("(?:[^"\\]|\\.)*")')


class AgentStatus(StrEnum):
    """What a launch agent says of itself."""

    POLLING = "POLLING"
    RUNNING = "RUNNING"
    KILLED = "KILLED"


@dataclass(frozen=True, slots=True)
class RunPath:
    """The address of a W&B run."""

    entity: str
    project: str
    run_id: str


@dataclass(frozen=True, slots=True)
class QueueRecord:
    """A queue: `config` is its default resource config as W&B keeps it, `resource` its kind."""

    queue_id: str
    name: str
    resource: str | None
    config: object
    prioritization_mode: str | None


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """A registered launch agent; `stop_polling` says that somebody wants it to end."""

    agent_id: str
    name: str
    status: str | None
    stop_polling: bool


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """A run queue item: its state and the run it was claimed for."""

    item_id: str
    state: ItemState
    run_id: str | None


@dataclass(frozen=True, slots=True)
class PoppedItem:
    """A leased item.

    `payload` is the run spec without `_wandb_api_key`, which is `api_key`. When the spec could not be
    read `payload` is None and `problem` says why. `size_bytes` is the size of the whole answer.
    """

    item_id: str
    payload: object
    api_key: SecretStr | None
    size_bytes: int
    problem: Problem | None = None


class WandbQueue:
    """One queue of one entity.

    Every call has a deadline (`timeout_seconds`) and is repeated a few times when that is safe. The
    errors are those of `vertex_launch.errors`; none of them holds a key. `calls` counts requests by
    operation, repetitions included.
    """

    def __init__(
        self,
        endpoint: WandbEndpoint,
        *,
        entity: str,
        queue: str,
        project: str = QUEUE_PROJECT,
        timeout_seconds: float = 30.0,
        clock: Clock | None = None,
        random: Random | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.entity = entity
        self.queue = queue
        self.project = project
        self._graphql = WandbGraphql(
            endpoint,
            timeout_seconds=timeout_seconds,
            clock=clock or SystemClock(),
            random=random or Random(),  # noqa: S311 - jitter
            transport=transport,
        )
        self.calls = self._graphql.calls

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._graphql.aclose()

    async def find_queue(self) -> QueueRecord:
        """Return the queue. Raises NotFound, which names the queues that there are."""
        data = await self._graphql.execute(documents.GET_RUN_QUEUE, self._queue_variables())
        found = at(data, "project", "runQueue")
        if found is None:
            raise await self._no_such_queue()
        config_id = found.get("defaultResourceConfigID")
        config: dict[str, Any] = {}
        if config_id:
            variables = {"entityName": self.entity, "id": config_id}
            answer = await self._graphql.execute(documents.GET_RESOURCE_CONFIG, variables)
            config = at(answer, "entity", "defaultResourceConfig") or {}
        return QueueRecord(
            queue_id=str(found["id"]),
            name=self.queue,
            resource=config.get("resource"),
            config=config.get("config"),
            prioritization_mode=found.get("prioritizationMode"),
        )

    async def register(self, agent_config: Mapping[str, Any]) -> AgentRecord:
        """Register a launch agent for the queue, so that W&B shows it, and return it."""
        queue = await self.find_queue()
        variables = {
            "entity": self.entity,
            "project": self.project,
            "queues": [queue.queue_id],
            "hostname": socket.gethostname(),
            "agentConfig": json.dumps(dict(agent_config)),
            "version": f"prefect-vertex-launch@{version('prefect-vertex-launch')}",
        }
        data = await self._graphql.execute(documents.CREATE_AGENT, variables)
        created = at(data, "createLaunchAgent")
        if created is None or not created.get("launchAgentId"):
            raise Refused(Problem(self._where(), "W&B did not register the launch agent"))
        return await self.read_agent(str(created["launchAgentId"]))

    async def read_agent(self, agent_id: str) -> AgentRecord:
        """Return a registered agent. Raises NotFound when W&B does not know it."""
        data = await self._graphql.execute(documents.GET_AGENT, {"agentId": agent_id})
        found = at(data, "launchAgent")
        if found is None:
            raise NotFound(Problem(f"launch agent {agent_id}", "W&B does not know it"))
        return AgentRecord(
            agent_id=agent_id,
            name=str(found.get("name") or ""),
            status=found.get("agentStatus"),
            stop_polling=bool(found.get("stopPolling")),
        )

    async def heartbeat(self, agent_id: str, status: AgentStatus) -> None:
        """Tell W&B what the agent is doing."""
        await self._succeed(
            documents.UPDATE_AGENT,
            {"agentId": agent_id, "agentStatus": status.value},
            f"launch agent {agent_id}",
        )

    async def pop(self, agent_id: str | None) -> PoppedItem | None:
        """Lease the next item; None when there is none.

        Sent once: Transient means that the answer was lost, and an item it may have held comes back.
        A spec that cannot be read still yields its item, so that it can be failed.
        """
        variables = {
            "entity": self.entity,
            "project": self.project,
            "queueName": self.queue,
            "launchAgentId": agent_id,
        }
        text = await self._graphql.send(documents.POP, variables)
        try:
            answer: object = json.loads(text)
        except (ValueError, RecursionError) as error:
            return _unreadable_item(text, error)
        popped = at(self._graphql.data_of(documents.POP, answer), "popFromRunQueue")
        if popped is None:
            return None
        if not isinstance(popped.get("runQueueItemId"), str):
            raise Transient(f"W&B's answer to {documents.POP.name} names no item")
        return _popped_item(popped["runQueueItemId"], popped.get("runSpec"), len(text.encode()))

    async def acknowledge(self, item_id: str, run_id: str) -> None:
        """Claim a leased item for a run; claiming it again for the same run is fine.

        A refusal, whatever its kind, is checked against the item itself, because the answer to an
        earlier claim of ours may have been lost. Raises Conflict, which says who has the item, when it
        is not ours to claim any more, and what W&B said when the item does not explain it.
        """
        variables = {"itemId": item_id, "runId": run_id}
        refusal: Permanent | None = None
        try:
            data = await self._graphql.execute(documents.ACKNOWLEDGE, variables)
            answer = at(data, documents.ACKNOWLEDGE.name)
            if answer is not None and answer.get("success"):
                return
        except AuthenticationFailed:
            raise
        except Permanent as error:
            refusal = error
        item = await self._refused_item(item_id, refusal)
        if item.state is ItemState.CLAIMED and item.run_id == run_id:
            return
        is_elsewhere = item.run_id not in {None, run_id} or item.state is ItemState.PENDING
        if refusal is not None and not isinstance(refusal, Conflict) and not is_elsewhere:
            raise refusal
        has_it = f"run {item.run_id} has it" if item.run_id else f"it is {item.state.value}"
        raise Conflict(
            Problem(
                f"item {item_id}",
                f"W&B refused to give it to run {run_id}: {has_it}",
                why="a leased item that is not claimed within about a minute goes to the next agent",
            )
        ) from refusal

    async def _refused_item(self, item_id: str, refusal: Permanent | None) -> ItemRecord:
        """Return an item that W&B would not give to us; `refusal` is what it said, if anything."""
        try:
            return await self.read_item(item_id)
        except NotFound as error:
            if refusal is None or isinstance(refusal, Conflict | NotFound):
                raise Conflict(Problem(f"item {item_id}", "it was removed from the queue")) from error
            raise refusal from error
        except AuthenticationFailed:
            raise
        except Permanent as error:
            raise (refusal or error) from error

    async def fail(self, item_id: str, message: str, stage: str, file_paths: Sequence[str] = ()) -> None:
        """Mark an item as failed at W&B, with the message that its page shows."""
        await self._notify(documents.FAIL, item_id, message, stage, file_paths)

    async def warn(self, item_id: str, message: str, stage: str, file_paths: Sequence[str] = ()) -> None:
        """Attach a warning to an item at W&B."""
        await self._notify(documents.WARN, item_id, message, stage, file_paths)

    async def read_item(self, item_id: str) -> ItemRecord:
        """Return an item of this queue. Raises NotFound when it is not there."""
        variables = self._queue_variables() | {"itemId": item_id}
        data = await self._graphql.execute(documents.GET_ITEM, variables)
        found = at(data, "project", "runQueue", "runQueueItem")
        if found is None:
            raise NotFound(Problem(f"item {item_id}", f"it is not in {self._where()}"))
        run_id = found.get("associatedRunId")
        try:
            state = ItemState(str(found.get("state")).upper())
        except ValueError:
            state = ItemState.UNKNOWN
        return ItemRecord(item_id=item_id, state=state, run_id=str(run_id) if run_id else None)

    async def read_run_state(self, entity: str, project: str, run_id: str) -> str | None:
        """Return a run's state (`pending`, `running`, `finished`, …), or None: there is no such run."""
        variables = {"entity": entity, "project": project, "name": run_id}
        try:
            data = await self._graphql.execute(documents.GET_RUN_STATE, variables)
        except NotFound:
            return None
        found = at(data, "project", "run")
        return None if found is None else cast("str | None", found.get("state"))

    async def stopped_runs(self, runs: Sequence[RunPath]) -> frozenset[RunPath]:
        """Return those of the runs that somebody asked W&B to stop; one request for each 50 runs."""
        stopped: set[RunPath] = set()
        for start in range(0, len(runs), RUNS_PER_REQUEST):
            stopped |= await self._stopped(runs[start : start + RUNS_PER_REQUEST])
        return frozenset(stopped)

    async def stop_run(self, run: RunPath) -> None:
        """Ask W&B to stop a run: it ends itself when it next talks to W&B, and we hear of it too."""
        # The id is what W&B's own sweep scheduler builds (sdk/launch/sweeps/scheduler.py).
        run_id = base64.b64encode(f"Run:v1:{run.run_id}:{run.project}:{run.entity}".encode()).decode()
        await self._succeed(
            documents.STOP_RUN, {"id": run_id}, f"run {run.entity}/{run.project}/{run.run_id}", "stopRun"
        )

    async def read_job(self, entity: str, project: str, name_and_alias: str) -> JobSource:
        """Return what the W&B job `name:alias` runs. Raises NotFound or Refused for what is no job."""
        return await read_job(self._graphql, entity, project, name_and_alias)

    async def _stopped(self, runs: Sequence[RunPath]) -> set[RunPath]:
        variables: dict[str, str] = {}
        for number, run in enumerate(runs):
            variables |= {f"e{number}": run.entity, f"p{number}": run.project, f"r{number}": run.run_id}
        try:
            data = await self._graphql.execute(documents.stopped_runs(len(runs)), variables)
        except AuthenticationFailed:
            raise
        except Permanent:
            # One run that W&B will not show (a private project, say) must not hide the others.
            if len(runs) == 1:
                return set()
            half = len(runs) // 2
            return await self._stopped(runs[:half]) | await self._stopped(runs[half:])
        found = {run: at(data, f"run{number}", "run") for number, run in enumerate(runs)}
        return {run for run, answer in found.items() if answer is not None and answer.get("stopped")}

    async def _notify(
        self, operation: Operation, item_id: str, message: str, stage: str, file_paths: Sequence[str]
    ) -> None:
        variables: dict[str, Any] = {"runQueueItemId": item_id, "message": message, "stage": stage}
        if file_paths:
            variables["filePaths"] = list(file_paths)
        await self._succeed(operation, variables, f"item {item_id}")

    async def _succeed(
        self, operation: Operation, variables: Mapping[str, Any], where: str, field: str | None = None
    ) -> None:
        answer = at(await self._graphql.execute(operation, variables), field or operation.name)
        if answer is None or not answer.get("success"):
            raise Refused(Problem(where, f"W&B did not carry out {operation.name}"))

    async def _no_such_queue(self) -> NotFound:
        variables = {"entity": self.entity, "projectName": self.project}
        data = await self._graphql.execute(documents.LIST_RUN_QUEUES, variables)
        project = at(data, "project") or {}
        names = sorted(str(queue["name"]) for queue in project.get("runQueues") or ())
        close = get_close_matches(self.queue, names, 1)
        there = f"The queues of {self.entity} are: {', '.join(names)}" if names else "It has no queues"
        hint = f"Did you mean {close[0]}?" if close else "Create it at W&B, or correct entity and queue."
        return NotFound(Problem(self._where(), "there is no such queue", why=there, fix=hint))

    def _queue_variables(self) -> dict[str, Any]:
        return {"projectName": self.project, "entityName": self.entity, "runQueue": self.queue}

    def _where(self) -> str:
        return f"queue {self.entity}/{self.queue}"


def _popped_item(item_id: str, spec: object, size_bytes: int) -> PoppedItem:
    if isinstance(spec, str):
        try:
            spec = json.loads(spec)
        except (ValueError, RecursionError) as error:
            return PoppedItem(item_id, None, None, size_bytes, _unreadable(item_id, size_bytes, error))
    if not isinstance(spec, dict):
        return PoppedItem(item_id, spec, None, size_bytes)
    payload = cast("dict[str, Any]", spec)
    key = payload.pop(_API_KEY_FIELD, None)
    return PoppedItem(item_id, payload, SecretStr(key) if isinstance(key, str) and key else None, size_bytes)


def _unreadable_item(text: str, error: Exception) -> PoppedItem:
    # The first one is the item's own: whatever the spec holds comes after it.
    match = _ITEM_ID.search(text)
    if match is None:
        raise Transient(f"W&B's answer to {documents.POP.name} is not readable and names no item") from error
    size_bytes = len(text.encode())
    item_id = str(json.loads(match[1], strict=False))
    return PoppedItem(item_id, None, None, size_bytes, _unreadable(item_id, size_bytes, error))


def _unreadable(item_id: str, size_bytes: int, error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        what = "the run spec is nested too deeply to be read"
    elif size_bytes > MAX_ANSWER_BYTES:
        what = f"the run spec is larger than {MAX_ANSWER_BYTES // 1024 // 1024} MiB"
    else:
        what = "the run spec is not valid JSON"
    return Problem(f"item {item_id}", what, fix="Launch the run again with a correct spec.")
