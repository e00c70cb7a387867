"""The W&B Launch queue protocol for one queue, as an async client.

Operations and fields are those of the wandb client, which the real server is known to accept; only
the batched read of runs is our own, through ordinary GraphQL aliases. A pop is never sent
twice: an item whose answer was lost returns to the queue by itself when its lease ends, about a
minute later.

What an item is, and runs, sweeps, agents and files, are in modules of their own. This class is what
blocks and flows use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self

import httpx

from prefect_vertex_launch.core.clock import Clock, SystemClock
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    Conflict,
    NotFound,
    Permanent,
    Problem,
    Transient,
)
from prefect_vertex_launch.core.spelling import right_spelling
from prefect_vertex_launch.core.states import ItemState
from prefect_vertex_launch.jobspec.job_source import JobSource
from prefect_vertex_launch.wandb import agents, documents, files, runs, sweeps
from prefect_vertex_launch.wandb.agents import AgentRecord, AgentStatus
from prefect_vertex_launch.wandb.endpoint import WandbEndpoint
from prefect_vertex_launch.wandb.files import error_file
from prefect_vertex_launch.wandb.graphql import Operation, WandbGraphql, at, objects_at, text_at
from prefect_vertex_launch.wandb.items import (
    ItemRecord,
    PoppedItem,
    as_item_record,
    as_popped_item,
    unreadable_item,
)
from prefect_vertex_launch.wandb.jobs import read_job
from prefect_vertex_launch.wandb.runs import RunPath, RunRecord

__all__ = [
    "AgentRecord",
    "AgentStatus",
    "ItemRecord",
    "JobSource",
    "PoppedItem",
    "QueueRecord",
    "RunPath",
    "RunRecord",
    "WandbEndpoint",
    "WandbQueue",
    "error_file",
]

# W&B keeps every entity's queues in this project.
QUEUE_PROJECT = "model-registry"


@dataclass(frozen=True, slots=True)
class QueueRecord:
    """A queue: `config` is its default resource config as W&B keeps it, `resource` its kind."""

    queue_id: str
    name: str
    resource: str | None
    config: object
    prioritization_mode: str | None


class WandbQueue:
    """One queue of one entity.

    Every call has a deadline (`timeout_seconds`) and is repeated a few times when that is safe. The
    errors are those of `core.errors`; none of them holds a key. `calls` counts requests by operation,
    repetitions included.
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
        on_denied: Callable[[], None] | None = None,
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
            on_denied=on_denied,
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

    def use(self, endpoint: WandbEndpoint) -> None:
        """Send what is sent from now on with another key for the same server."""
        self._graphql.use(endpoint)

    async def find_queue(self) -> QueueRecord:
        """Return the queue. Raises NotFound, which names the queues that there are."""
        data = await self._graphql.execute(documents.GET_RUN_QUEUE, self._queue_variables())
        found = at(data, "project", "runQueue")
        if found is None:
            raise await self._no_such_queue()
        config_id = text_at(found, "defaultResourceConfigID")
        config: dict[str, Any] = {}
        if config_id:
            variables = {"entityName": self.entity, "id": config_id}
            answer = await self._graphql.execute(documents.GET_RESOURCE_CONFIG, variables)
            config = at(answer, "entity", "defaultResourceConfig") or {}
        return QueueRecord(
            queue_id=str(found.get("id")),
            name=self.queue,
            resource=text_at(config, "resource"),
            config=config.get("config"),
            prioritization_mode=text_at(found, "prioritizationMode"),
        )

    async def register(self, agent_config: Mapping[str, Any], queue_ids: Sequence[str] = ()) -> AgentRecord:
        """Register a launch agent, so that W&B shows it with its queues, and return it.

        `queue_ids` are those of several queues of the entity; without any it is for this queue alone.
        """
        return await agents.register(
            self._graphql,
            entity=self.entity,
            project=self.project,
            queue_ids=queue_ids or [(await self.find_queue()).queue_id],
            agent_config=agent_config,
        )

    async def read_agent(self, agent_id: str) -> AgentRecord:
        """Return a registered agent. Raises NotFound when W&B does not know it."""
        return await agents.read_agent(self._graphql, agent_id)

    async def heartbeat(self, agent_id: str, status: AgentStatus) -> None:
        """Tell W&B what the agent is doing."""
        await agents.heartbeat(self._graphql, agent_id, status)

    async def open_agent_run(self, agent_name: str) -> None:
        """Create the run that an agent's files are kept in; doing so again changes nothing.

        W&B takes a run that is silent for five minutes for crashed. Its files stay readable, and opening
        it again brings it back.
        """
        await files.open_agent_run(self._graphql, self._agent_run(agent_name))

    async def upload_agent_file(self, agent_name: str, path: str, text: str) -> None:
        """Save a text in an agent's run; `fail` and `warn` take the path, `error_file` makes it.

        Of more than 1 MiB the middle is left out. Raises NotFound when the run was never opened.
        """
        await files.upload_file(self._graphql, self._agent_run(agent_name), path, text)

    async def close_agent_run(self, agent_name: str) -> None:
        """End an agent's run as finished."""
        await files.close_agent_run(self._graphql, self._agent_run(agent_name))

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
            return unreadable_item(text, error)
        popped = at(self._graphql.data_of(documents.POP, answer, variables), "popFromRunQueue")
        if popped is None:
            return None
        if not isinstance(popped.get("runQueueItemId"), str):
            raise Transient(f"W&B's answer to {documents.POP.name} names no item")
        return as_popped_item(popped["runQueueItemId"], popped.get("runSpec"), len(text.encode()))

    async def acknowledge(self, item_id: str, run_id: str) -> None:
        """Claim a leased item for a run; claiming it again for the same run is fine.

        After any refusal the item itself is read, because the answer to an earlier claim of ours may
        have been lost. Raises Conflict, which says who has the item, when we cannot claim it any more.
        Raises what W&B said when the item does not explain the refusal.
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
        # So is a failed item of ours: who reported the failure may have died before Prefect knew of it.
        if item.state in {ItemState.CLAIMED, ItemState.FAILED} and item.run_id == run_id:
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
        """Mark an item as failed at W&B, with the message that its page shows.

        Raises Transient when W&B answers that it has not, although the item could still fail.
        """
        if await self._notify(documents.FAIL, item_id, message, stage, file_paths):
            return
        if (await self.read_item(item_id)).state not in {ItemState.FAILED, ItemState.UNKNOWN}:
            raise Transient(f"item {item_id}: W&B did not carry out {documents.FAIL.name}")

    async def warn(self, item_id: str, message: str, stage: str, file_paths: Sequence[str] = ()) -> None:
        """Attach a warning to an item at W&B. Raises Transient when W&B answers that it has not."""
        if not await self._notify(documents.WARN, item_id, message, stage, file_paths):
            raise Transient(f"item {item_id}: W&B did not carry out {documents.WARN.name}")

    async def read_item(self, item_id: str) -> ItemRecord:
        """Return an item of this queue. Raises NotFound when it is not there."""
        variables = self._queue_variables() | {"itemId": item_id}
        data = await self._graphql.execute(documents.GET_ITEM, variables)
        found = at(data, "project", "runQueue", "runQueueItem")
        if found is None:
            raise NotFound(Problem(f"item {item_id}", f"it is not in {self._where()}"))
        return as_item_record(item_id, found)

    async def read_run_spec(self, item_id: str) -> PoppedItem:
        """Return an item of this queue as a pop would bring it.

        Raises NotFound when it is not there, and Refused by a server that does not show run specs.
        """
        variables = self._queue_variables() | {"itemId": item_id}
        data = await self._graphql.execute(documents.GET_RUN_SPEC, variables)
        found = at(data, "project", "runQueue", "runQueueItem")
        if found is None or found.get("runSpec") is None:
            raise NotFound(Problem(f"item {item_id}", f"it is not in {self._where()}"))
        return as_popped_item(item_id, found["runSpec"], len(json.dumps(found)))

    async def read_runs(self, paths: Sequence[RunPath]) -> dict[RunPath, RunRecord]:
        """Return state and stop request of each run, with one request for each 50.

        A run that W&B does not know, or will not show, is not in the answer.
        """
        return await runs.read_runs(self._graphql, paths)

    async def read_run_state(self, entity: str, project: str, run_id: str) -> str | None:
        """Return a run's state (`pending`, `running`, `finished`, …), or None: there is no such run.

        Raises NotFound or PermissionDenied when W&B does not show the project of another entity: whether
        the run exists cannot be known then.
        """
        run = RunPath(entity, project, run_id)
        return await runs.read_run_state(self._graphql, run, own_entity=self.entity)

    async def read_sweep_state(self, entity: str, project: str, sweep_id: str) -> str | None:
        """Return a sweep's state (`RUNNING`, `PAUSED`, `FINISHED`, …), or None: no such sweep is seen."""
        return await sweeps.read_sweep_state(self._graphql, entity, project, sweep_id)

    async def cancel_sweep(self, entity: str, project: str, sweep_id: str) -> None:
        """Cancel a sweep of this queue's unless it has ended.

        Raises NotFound when there is no such sweep, and Refused for one that another queue launches.
        """
        await sweeps.cancel_sweep(self._graphql, entity, project, sweep_id, queue=self.queue)

    async def read_job(self, entity: str, project: str, name_and_alias: str) -> JobSource:
        """Return what the W&B job `name:alias` runs. Raises NotFound or Refused for what is no job."""
        return await read_job(self._graphql, entity, project, name_and_alias)

    async def _notify(
        self, operation: Operation, item_id: str, message: str, stage: str, file_paths: Sequence[str]
    ) -> bool:
        variables: dict[str, Any] = {"runQueueItemId": item_id, "message": message, "stage": stage}
        if file_paths:
            variables["filePaths"] = list(file_paths)
        return await self._graphql.is_done(operation, variables)

    async def _no_such_queue(self) -> NotFound:
        variables = {"entity": self.entity, "projectName": self.project}
        data = await self._graphql.execute(documents.LIST_RUN_QUEUES, variables)
        queues = objects_at(at(data, "project"), "runQueues")
        names = sorted(str(queue.get("name")) for queue in queues)
        near = right_spelling(self.queue, names)
        there = f"The queues of {self.entity} are: {', '.join(names)}" if names else "It has no queues"
        hint = f"Did you mean {near}?" if near else "Create it at W&B, or correct entity and queue."
        return NotFound(Problem(self._where(), "there is no such queue", why=there, fix=hint))

    def _agent_run(self, agent_name: str) -> RunPath:
        return RunPath(self.entity, self.project, agent_name)

    def _queue_variables(self) -> dict[str, Any]:
        return {"projectName": self.project, "entityName": self.entity, "runQueue": self.queue}

    def _where(self) -> str:
        return f"queue {self.entity}/{self.queue}"
