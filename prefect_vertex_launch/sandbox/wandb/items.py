"""Run queue items: pushed, leased by a pop, claimed by an ack, failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.ids import make_id
from prefect_vertex_launch.sandbox.wandb.queues import ResourceConfig, RunQueue
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal, parse_json, parse_json_object
from prefect_vertex_launch.sandbox.wandb.table import Table
from prefect_vertex_launch.sandbox.wandb.templates import fill, values_of

_MEDIUM = 2
_PRIORITIES = range(4)
_ERROR, _WARNING = "error", "warning"


class QueueItemState(StrEnum):
    """The states W&B's clients know."""

    PENDING = "PENDING"
    LEASED = "LEASED"
    CLAIMED = "CLAIMED"
    FAILED = "FAILED"


@dataclass
class QueueItem:
    """One launch that waits, is leased, or was taken. `number` orders the items of all queues.

    `notices` are all its failures and warnings in their order: `kind` (`error`, `warning`), `message`,
    `stage` and `filePaths`.
    """

    id: str
    number: int
    queue_id: str
    created_at: str
    updated_at: str
    state: str = QueueItemState.PENDING.value
    priority: int | None = None
    associated_run_id: str | None = None
    agent_id: str | None = None
    leased_until: float | None = None
    notices: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def key(self) -> str:
        """The id."""
        return self.id

    @property
    def error(self) -> dict[str, Any] | None:
        """The latest of its failures: `message`, `stage` and `filePaths`."""
        return self._latest(_ERROR)

    @property
    def warning(self) -> dict[str, Any] | None:
        """The latest of its warnings: `message`, `stage` and `filePaths`."""
        return self._latest(_WARNING)

    def _latest(self, kind: str) -> dict[str, Any] | None:
        for notice in reversed(self.notices):
            if notice["kind"] == kind:
                return {name: value for name, value in notice.items() if name != "kind"}
        return None


class Items:
    """The rules of the queue protocol.

    A pop leases an item; without an ack it is back in its old place after `lease_seconds` (about a
    minute at W&B). An ack counts only while the item is leased, and only once. Run specs are kept apart
    from the rows, as the very text that a pop answers with.
    """

    def __init__(self, records: Records, now: Callable[[], datetime], *, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._records = records
        self._now = now
        self._items = Table(records, "run-queue-item", QueueItem)

    def get(self, item_id: str) -> QueueItem | None:
        """Return an item as it stands now, or None."""
        item = self._items.get(item_id)
        return None if item is None else self._settled(item)

    def all(self) -> list[QueueItem]:
        """Return the items of all queues as they stand now, oldest first."""
        return [self._settled(item) for item in self._items]

    def of_queue(self, queue: RunQueue) -> list[QueueItem]:
        """Return a queue's items as they stand now, oldest first."""
        return [self._settled(item) for item in self._items if item.queue_id == queue.id]

    def run_spec_text(self, item: QueueItem) -> str:
        """Return an item's run spec, as text."""
        record = self._records.get("run-spec", item.id)
        return "null" if record is None else record["text"]

    def push(
        self,
        queue: RunQueue,
        config: ResourceConfig | None,
        run_spec: str,
        *,
        author: str,
        priority: int | None = None,
        variable_values: str | None = None,
    ) -> QueueItem:
        """Put a launch on a queue, completed with what the queue has to add.

        An item without resource_args takes the queue's, with the template variables filled in; its
        resource and author are added if it has none.

        Raises:
            WandbRefusal: 400 for anything but a JSON object, for a priority where the queue has none,
                and for template variables that break their schema.
        """
        spec = parse_json_object(run_spec, what="runSpec")
        if priority is not None and not queue.by_priority:
            raise WandbRefusal(400, f"run queue {queue.name} does not support priorities")
        if priority is not None and priority not in _PRIORITIES:
            raise WandbRefusal(400, "priority must be 0 (critical), 1 (high), 2 (medium) or 3 (low)")
        given: object = parse_json(variable_values, what="templateVariableValues") if variable_values else {}
        if given is not None and not isinstance(given, dict):
            raise WandbRefusal(400, "templateVariableValues must be a JSON object")
        completed = _completed(spec, config, given or {})  # pyright: ignore[reportUnknownArgumentType]  # JSON
        completed.setdefault("author", author)
        return self.push_raw(queue, json.dumps(completed), priority=priority)

    def push_raw(self, queue: RunQueue, text: str, *, priority: int | None = None) -> QueueItem:
        """Put an item on a queue whose run spec is exactly this text, JSON or not."""
        number = self._records.next_number("run-queue-item")
        now = self._now().isoformat()
        item = QueueItem(
            id=make_id("RunQueueItem", number),
            number=number,
            queue_id=queue.id,
            created_at=now,
            updated_at=now,
            priority=_MEDIUM if priority is None and queue.by_priority else priority,
        )
        self._records.put("run-spec", item.id, {"text": text})
        self._items.save(item)
        return item

    def pop(self, queue: RunQueue, agent_id: str | None) -> QueueItem | None:
        """Lease the next item, or return None: by priority, then age, where the queue has priorities."""
        pending = [item for item in self.of_queue(queue) if item.state == QueueItemState.PENDING]
        if not pending:
            return None
        item = min(pending, key=lambda waiting: _place(queue, waiting))
        item.state = QueueItemState.LEASED.value
        item.agent_id = agent_id
        item.leased_until = self._now().timestamp() + self.lease_seconds
        self._save(item)
        return item

    def end_lease(self, item_id: str) -> None:
        """Put a leased item back where it was, as the end of its lease does; others stay as they are."""
        item = self._known(item_id)
        if item.leased_until is not None:
            item.leased_until = self._now().timestamp()
            self._settled(item)

    def acknowledge(self, item_id: str, run_id: str) -> QueueItem:
        """Claim a leased item for a run.

        Raises:
            WandbRefusal: 404 for an unknown item, 409 if it is not leased (any more).
        """
        item = self._known(item_id)
        if item.state != QueueItemState.LEASED:
            raise WandbRefusal(409, "item already claimed or not eligible to be claimed")
        item.state = QueueItemState.CLAIMED.value
        item.associated_run_id = run_id
        item.leased_until = None
        self._save(item)
        return item

    def fail(self, item_id: str, message: str, stage: str, file_paths: list[str] | None) -> QueueItem:
        """Mark an item failed, whatever its state, and keep why.

        Raises:
            WandbRefusal: 404 for an unknown item.
        """
        item = self._known(item_id)
        item.state = QueueItemState.FAILED.value
        item.leased_until = None
        item.notices.append(_notice(_ERROR, message, stage, file_paths))
        self._save(item)
        return item

    def warn(self, item_id: str, message: str, stage: str, file_paths: list[str] | None) -> QueueItem:
        """Keep a warning on an item; the latest one is what W&B shows.

        Raises:
            WandbRefusal: 404 for an unknown item.
        """
        item = self._known(item_id)
        item.notices.append(_notice(_WARNING, message, stage, file_paths))
        self._save(item)
        return item

    def delete(self, item: QueueItem) -> None:
        """Remove an item."""
        self._items.delete(item)
        self._records.delete("run-spec", item.id)

    def _known(self, item_id: str) -> QueueItem:
        item = self.get(item_id)
        if item is None:
            raise WandbRefusal(404, f"run queue item {item_id} not found")
        return item

    def _settled(self, item: QueueItem) -> QueueItem:
        if item.leased_until is not None and self._now().timestamp() >= item.leased_until:
            item.state = QueueItemState.PENDING.value
            item.leased_until = None
            self._save(item)
        return item

    def _save(self, item: QueueItem) -> None:
        item.updated_at = self._now().isoformat()
        self._items.save(item)


def _notice(kind: str, message: str, stage: str, file_paths: list[str] | None) -> dict[str, Any]:
    return {"kind": kind, "message": message, "stage": stage, "filePaths": file_paths or []}


def _place(queue: RunQueue, item: QueueItem) -> tuple[int, int]:
    priority = item.priority if queue.by_priority and item.priority is not None else _MEDIUM
    return priority, item.number


def _completed(spec: dict[str, Any], config: ResourceConfig | None, given: dict[str, Any]) -> dict[str, Any]:
    if config is None or spec.get("resource_args"):
        return spec
    values, problems = values_of(config.variables, given)
    if problems:
        raise WandbRefusal(400, "; ".join(problems))
    resource_args = fill(config.config.get("resource_args", {}), values)
    return {**spec, "resource": spec.get("resource") or config.resource, "resource_args": resource_args}
