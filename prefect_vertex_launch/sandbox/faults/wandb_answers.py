"""Faults in what W&B's answers mean: asked for at each field of a GraphQL document's root."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect_vertex_launch.sandbox.faults.kinds import AT_WANDB, WIRE, What
from prefect_vertex_launch.sandbox.faults.registry import Fault
from prefect_vertex_launch.sandbox.request_texts import texts_of
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.sandbox.wandb.graphql.operations import field_can_have
from prefect_vertex_launch.sandbox.wandb.graphql.user_fields import RawJson, Resolver, View
from prefect_vertex_launch.sandbox.wandb.items import QueueItem, QueueItemState

_MEANING: Final = AT_WANDB - WIRE - {What.DOWN}


@dataclass(frozen=True, slots=True)
class RootCall:
    """A field of the root, in the operation of this name, with its arguments and the request's variables."""

    field: str
    operation: str
    values: Mapping[str, Any]
    variables: Mapping[str, Any]

    @property
    def texts(self) -> list[str]:
        """All that it says."""
        return texts_of([dict(self.values), dict(self.variables)])

    def names(self, text: str) -> bool:
        """Tell whether one of its values is this text."""
        return any(value == text for value in (*self.values.values(), *self.variables.values()))


def resolve_at_root(resolve: Resolver, backend: WandbBackend, call: RootCall) -> Any:
    """Return what a field answers, with the fault that is on for it."""
    kinds = {what for what in _MEANING if field_can_have(what, call.field)}
    switch = backend.faults.take("wandb", kinds, {call.field, call.operation}, call.texts)

    def answer() -> Any:
        return resolve(None, backend, call.values)

    if switch is None:
        return answer()
    return _ACTIONS[switch.fault.what](backend, call, switch.fault, answer)


Answer = Callable[[], Any]


def _null(_backend: WandbBackend, _call: RootCall, _fault: Fault, _answer: Answer) -> None:
    return None


def _false(_backend: WandbBackend, _call: RootCall, _fault: Fault, _answer: Answer) -> View:
    return {"success": False, "clientMutationId": None}


def _deleted(backend: WandbBackend, call: RootCall, _fault: Fault, answer: Answer) -> Any:
    """Remove the queue that the call names, or else the item, or else the run, and answer after that."""
    for queue in backend.queues.all():
        if call.names(queue.name) or call.names(queue.id):
            backend.delete_queue(queue)
            return answer()
    for item in backend.items.all():
        if call.names(item.id):
            backend.items.delete(item)
            return answer()
    for run in backend.runs.all():
        if call.names(run.name) or call.names(run.id):
            backend.runs.delete(run)
    return answer()


def _same_item(backend: WandbBackend, call: RootCall, _fault: Fault, answer: Answer) -> Any:
    """Hand out once more the item that this queue handed out last, whatever became of it."""
    values = call.values
    queue = backend.queue_in(values["entityName"], values["projectName"], values["queueName"])
    taken = [item for item in backend.items.of_queue(queue) if item.state != QueueItemState.PENDING]
    if not taken:
        return answer()
    last: QueueItem = max(taken, key=lambda item: item.updated_at)
    return {"runQueueItemId": last.id, "runSpec": RawJson(backend.items.run_spec_text(last))}


def _lease_ends(backend: WandbBackend, _call: RootCall, _fault: Fault, answer: Answer) -> Any:
    popped = answer()
    if popped is not None:
        backend.items.end_lease(popped["runQueueItemId"])
    return popped


def _run_spec(_backend: WandbBackend, _call: RootCall, fault: Fault, answer: Answer) -> Any:
    popped = answer()
    if popped is None:
        return None
    text = fault.run_spec
    if text is None:
        text = _object_of(fault.size_bytes or 0)
    return {**popped, "runSpec": RawJson(text)}


def _object_of(size_bytes: int) -> str:
    """Return a JSON object of exactly this size."""
    start, fill, end = ('{"filler": "', "x", '"}') if size_bytes >= 14 else ("{", " ", "}")
    return start + fill * (size_bytes - len(start) - len(end)) + end


def _stop_polling(_backend: WandbBackend, _call: RootCall, _fault: Fault, answer: Answer) -> Any:
    agent = answer()
    return None if agent is None else {**agent, "stopPolling": True}


_ACTIONS: Final[Mapping[What, Callable[[WandbBackend, RootCall, Fault, Answer], Any]]] = {
    What.NULL: _null,
    What.FALSE: _false,
    What.DELETED: _deleted,
    What.SAME_ITEM: _same_item,
    What.LEASE_ENDS: _lease_ends,
    What.RUN_SPEC: _run_spec,
    What.STOP_POLLING: _stop_polling,
}
