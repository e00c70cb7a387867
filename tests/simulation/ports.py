"""The three remote systems as one process sees them: the methods that flows use, each an effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect import State
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

from prefect_vertex_launch.coordination.flow_run_page import FlowRunPage
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    OutcomeUnknown,
    Permanent,
    PermissionDenied,
    Problem,
    Transient,
)
from prefect_vertex_launch.core.states import JobRecord
from prefect_vertex_launch.wandb.queue import (
    AgentRecord,
    AgentStatus,
    ItemRecord,
    PoppedItem,
    QueueRecord,
    RunPath,
    RunRecord,
)
from tests.simulation.faults import Loss
from tests.simulation.prefect_model import AGENT, Answer, refusal
from tests.simulation.process import Look, Process
from tests.simulation.vertex_model import PROJECT, Create, keys_of, run_id_of
from tests.simulation.wandb_model import ENTITY, QUEUE, Pop
from tests.simulation.world import World

T = TypeVar("T")

_REFUSALS = {Loss.KEY: httpx.codes.UNAUTHORIZED, Loss.RIGHT: httpx.codes.FORBIDDEN}


class WandbPort:
    """A process's client of the run queue, with the methods of `WandbQueue`."""

    entity, queue = ENTITY, QUEUE

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._model = world.wandb

    async def find_queue(self) -> QueueRecord:
        return await self._read("find_queue", self._model.find_queue)

    async def register(self, agent_config: Mapping[str, Any], queue_ids: Sequence[str] = ()) -> AgentRecord:
        return await self._write("register", self._model.register)

    async def read_agent(self, agent_id: str) -> AgentRecord:
        return await self._read("read_agent", lambda: self._model.read_agent(agent_id))

    async def heartbeat(self, agent_id: str, status: AgentStatus) -> None:
        await self._write("heartbeat", lambda: self._model.heartbeat(agent_id, status), status.value)

    async def open_agent_run(self, agent_name: str) -> None:
        await self._write("open_agent_run", lambda: None)

    async def upload_agent_file(self, agent_name: str, path: str, text: str) -> None:
        await self._write("upload_agent_file", lambda: None, path)

    async def close_agent_run(self, agent_name: str) -> None:
        await self._write("close_agent_run", lambda: None)

    async def pop(self, agent_id: str | None) -> PoppedItem | None:
        popped = await self._write("pop", self._model.pop)
        if popped is not None:
            self._model.delivered.append(Pop(popped.item_id, self._process.name))
            self._world.note(self._process.name, f"has item {popped.item_id}")
        return popped

    async def acknowledge(self, item_id: str, run_id: str) -> None:
        may_write = self._world.auditor.writes(self._process, item_id, 1)

        def acknowledge() -> None:
            may_write()
            self._model.acknowledge(item_id, run_id)

        await self._write("acknowledge", acknowledge, item_id)

    async def fail(self, item_id: str, message: str, stage: str, file_paths: Sequence[str] = ()) -> None:
        may_write = self._world.auditor.writes(self._process, item_id, 6)

        def fail() -> None:
            may_write()
            self._model.fail(item_id, message)

        await self._write("fail", fail, item_id)

    async def warn(self, item_id: str, message: str, stage: str, file_paths: Sequence[str] = ()) -> None:
        await self._write("warn", lambda: self._model.warn(item_id, message), item_id)

    async def read_item(self, item_id: str) -> ItemRecord:
        return await self._read("read_item", lambda: self._model.read_item(item_id), item_id)

    async def read_runs(self, runs: Sequence[RunPath]) -> dict[RunPath, RunRecord]:
        return await self._read("read_runs", lambda: self._model.read_runs(list(runs)), len(runs))

    async def read_run_state(self, entity: str, project: str, run_id: str) -> str | None:
        def lost(loss: Loss) -> Exception:
            if loss is Loss.RIGHT:
                self._world.auditor.unseen(run_id)
            return _lost_at_wandb(loss)

        return await self._world.effect(
            self._process, "wandb", "read_run_state", lambda: self._model.read_run_state(run_id), lost,
            subject=run_id,
        )  # fmt: skip

    async def _read(self, name: str, apply: Callable[[], T], subject: object = "") -> T:
        return await self._world.effect(self._process, "wandb", name, apply, _lost_at_wandb, subject=subject)

    async def _write(self, name: str, apply: Callable[[], T], subject: object = "") -> T:
        return await self._world.effect(
            self._process, "wandb", name, apply, _lost_at_wandb, subject=subject, is_write=True
        )


class VertexPort:
    """A process's client of the job service, with the methods of `VertexJobs`."""

    # The simulation is not about the budget: a list waits for nobody.
    used_share = 0.0
    project = PROJECT

    def __init__(self, world: World, process: Process, location: str) -> None:
        self._world = world
        self._process = process
        self._model = world.vertex
        self.location = location
        self.parent = f"projects/{PROJECT}/locations/{location}"

    async def aclose(self) -> None:
        """Nothing is open."""

    def share_calls(self, *, agents: int) -> None:
        """There is no budget."""

    async def turn_to_create(self) -> float:
        return self._process.clock.monotonic()

    async def create(
        self, job: Any, *, timeout_seconds: float | None = None, turn: float | None = None
    ) -> JobRecord:
        run_id = run_id_of(job)
        item = self._world.wandb.item_of_run[run_id]
        may_write = self._world.auditor.writes(self._process, item.item_id, 2)
        call = Create(self._process, self._world.loop.time())

        def create() -> JobRecord:
            may_write()
            self._model.count(is_submission=True)
            made = self._model.create(self.parent, job, run_id, call)
            script = item.script
            if script.stop_after_seconds is not None and made.attempt == 1:
                delay = script.pending_seconds + script.stop_after_seconds
                self._world.loop.call_later(delay, self._world.stop_run, made.run_id)
            return made.record_at(made.created)

        def lost(loss: Loss) -> Exception:
            if loss is Loss.RIGHT:
                self._world.auditor.denied(item.item_id)
            return _lost_create(loss)

        try:
            return await self._world.effect(
                self._process, "vertex", "create", create, lost, subject=_item_label(job), is_write=True
            )
        finally:
            call.answered = self._world.loop.time()

    async def get(self, name: str, *, attempts: int = 4) -> JobRecord:
        return await self._read("get", lambda: self._model.get(name), name.rsplit("/", 1)[-1])

    async def list(self, filter: str) -> tuple[JobRecord, ...]:  # noqa: A002 - the API's own word
        def listed() -> tuple[JobRecord, ...]:
            nonlocal made
            made = self._world.loop.time()
            return self._model.list(self.parent, filter)

        made = 0.0
        records = await self._read("list", listed)
        for key in keys_of(filter):
            self._process.looks[key, self.parent] = Look(made, self._world.loop.time())
        return records

    async def cancel(self, name: str) -> None:
        def cancel() -> None:
            self._model.count(is_submission=False)
            self._model.cancel(name)

        await self._world.effect(
            self._process, "vertex", "cancel", cancel, _lost_at_vertex,
            subject=name.rsplit("/", 1)[-1], is_write=True,
        )  # fmt: skip

    async def _read(self, name: str, apply: Callable[[], T], subject: object = "") -> T:
        def counted() -> T:
            self._model.count(is_submission=False)
            return apply()

        return await self._world.effect(
            self._process, "vertex", name, counted, _lost_at_vertex, subject=subject
        )


class PrefectPort:
    """A process's client of Prefect's server, with the methods of `PrefectClient` that flows use."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._model = world.prefect

    async def create_flow_from_name(self, name: str) -> UUID:
        return await self._do("create_flow", lambda: self._model.flow_id)

    async def request(self, method: str, path: str, *, json: dict[str, Any]) -> Answer:
        assert (method, path) == ("POST", "/flow_runs/")

        def create() -> Answer:
            answer = self._model.create_flow_run(json)
            if answer.status_code == 201:
                item_id = next(tag[5:] for tag in json["tags"] if tag.startswith("item:"))
                self._world.auditor.started(self._process, item_id)
                after = self._world.wandb.items[item_id].script.cancel_after_seconds
                if after is not None:
                    self._world.loop.call_later(after, self._world.cancel_launch, item_id)
            return answer

        return await self._do("create_flow_run", create, json["name"], is_write=True)

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        return await self._do("read_flow_run", lambda: self._model.flow_runs[flow_run_id])

    async def read_flow_runs(
        self,
        *,
        flow_filter: Any = None,
        flow_run_filter: Any,
        sort: Any = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[FlowRun]:
        if flow_filter is not None and flow_filter.name.any_ == [AGENT]:
            return await self._do("read_agents", lambda: self._model.agent_runs(flow_run_filter))
        return await self._do(
            "read_flow_runs", lambda: self._model.read_flow_runs(flow_run_filter, limit, offset)
        )

    async def update_flow_run(self, flow_run_id: UUID, *, tags: list[str]) -> None:
        async def update() -> None:
            asked = self._world.loop.time()
            await self._do(
                "update_flow_run",
                lambda: self._model.update_flow_run(flow_run_id, tags, asked),
                flow_run_id.int,
                is_write=True,
            )

        await _insisted(update)

    async def update_flow_run_labels(self, flow_run_id: UUID, labels: dict[str, Any]) -> None:
        await self._do(
            "update_labels",
            lambda: self._model.update_labels(flow_run_id, labels),
            flow_run_id.int,
            is_write=True,
        )

    async def read_flow_run_states(self, flow_run_id: UUID) -> list[State[Any]]:
        return await self._do(
            "read_states", lambda: [*self._model.states.get(flow_run_id, ())], flow_run_id.int
        )

    async def set_flow_run_state(
        self, flow_run_id: UUID, state: State[Any], force: bool = False
    ) -> State[Any]:
        async def set_state() -> State[Any]:
            return await self._do(
                "set_state",
                lambda: self._model.set_state(flow_run_id, state, force=force),
                f"{flow_run_id.int} {state.name}",
                is_write=True,
            )

        return await (_insisted(set_state) if force else set_state())

    async def upsert_global_concurrency_limit_by_name(self, name: str, limit: int) -> None:
        await self._do("upsert_limit", lambda: self._model.upsert_limit(name, limit), is_write=True)

    async def read_variable_by_name(self, name: str) -> Any:
        return self._model.variables.get(name)

    async def create_variable(self, variable: Any) -> None:
        self._model.variables[variable.name] = variable

    async def update_variable(self, variable: Any) -> None:
        self._model.variables[variable.name] = variable

    async def read_global_concurrency_limit_by_name(self, name: str) -> Any:
        def read() -> Any:
            self._model.sweep()
            if name not in self._model.limits:
                raise ObjectNotFound(http_exc=ValueError(name))
            return self._model.limits[name]

        return await self._do("read_limit", read)

    async def increment_concurrency_slots_with_lease(
        self, *, names: list[str], slots: int, mode: str, lease_duration: float, holder: Any = None
    ) -> Answer:
        return await self._do(
            "take_slot",
            lambda: self._model.take(names, lease_duration, holder and holder.id),
            is_write=True,
        )

    async def renew_concurrency_lease(self, lease_id: UUID, *, lease_duration: float) -> None:
        await self._do(
            "renew_slot", lambda: self._model.renew(lease_id, lease_duration), lease_id.int, is_write=True
        )

    async def release_concurrency_slots_with_lease(self, *, lease_id: UUID) -> None:
        await self._do("release_slot", lambda: self._model.release(lease_id), lease_id.int, is_write=True)

    async def release_concurrency_slots(self, names: list[str], slots: int, occupancy_seconds: float) -> None:
        async def release() -> None:
            await self._do(
                "release_counted", lambda: self._model.release_counted(names, slots), is_write=True
            )

        await _insisted(release)

    async def _do(
        self, name: str, apply: Callable[[], T], subject: object = "", *, is_write: bool = False
    ) -> T:
        def arrived() -> T:
            self._process.reach_prefect()
            return apply()

        return await self._world.effect(
            self._process, "prefect", name, arrived, _lost_at_prefect, subject=subject, is_write=is_write
        )


class PagePort:
    """The flow runs' pages, with the methods of `FlowRunPage`."""

    def __init__(self, world: World, process: Process, client: PrefectPort) -> None:
        self._world = world
        self._process = process
        self._client = client

    async def show_state(self, flow_run_id: UUID, state: State[Any]) -> None:
        await FlowRunPage(cast("Any", self._client)).show_state(flow_run_id, state)

    async def mark(self, flow_run_id: UUID, name: str) -> None:
        await FlowRunPage(cast("Any", self._client)).mark(flow_run_id, name)

    async def leave_link(self, link: str, text: str, description: str) -> None:
        await self._leave("leave_link")

    async def leave_text(self, markdown: str, description: str) -> None:
        await self._leave("leave_text")

    def emit(self, event: str, resource: dict[str, str], payload: dict[str, Any]) -> None:
        """Events are sent and forgotten."""

    async def cancelling(self, tag: str) -> set[UUID]:
        def cancelling() -> set[UUID]:
            return {
                run.id
                for run in self._world.prefect.flow_runs.values()
                if run.state is not None and run.state.type is StateType.CANCELLING and tag in run.tags
            }

        return await self._world.effect(self._process, "prefect", "cancelling", cancelling, _lost_at_prefect)

    async def _leave(self, name: str) -> None:
        await self._world.effect(
            self._process, "prefect", name, lambda: None, _lost_at_prefect, is_write=True
        )


async def _insisted(write: Callable[[], Awaitable[T]]) -> T:
    """Do what makes a difference when it is done again: Prefect's client asks again if it gets no answer."""
    try:
        return await write()
    except httpx.ReadTimeout:
        if not PREFECT_CLIENT_MAX_RETRIES.value():
            raise
        return await write()


def _item_label(job: Any) -> str:
    return f"{dict(job.labels)['launch-item'][:8]}/{dict(job.labels)['launch-attempt']}"


def _lost_at_wandb(loss: Loss) -> Exception:
    return _refused(loss, "W&B") or Transient(f"W&B: the {loss.value} was lost")


def _lost_at_vertex(loss: Loss) -> Exception:
    return _refused(loss, "Vertex AI") or Transient(f"Vertex AI: the {loss.value} was lost")


def _lost_create(loss: Loss) -> Exception:
    return _refused(loss, "Vertex AI") or OutcomeUnknown(f"Vertex AI: the {loss.value} was lost")


def _refused(loss: Loss, where: str) -> Exception | None:
    kinds: dict[Loss, type[Permanent]] = {Loss.KEY: AuthenticationFailed, Loss.RIGHT: PermissionDenied}
    return kinds[loss](Problem(where, "it says no")) if loss in kinds else None


def _lost_at_prefect(loss: Loss) -> Exception:
    if loss in _REFUSALS:
        return refusal(_REFUSALS[loss])
    if loss is Loss.REQUEST:
        return httpx.ConnectError("Prefect: the request was lost")
    return httpx.ReadTimeout("Prefect: the answer was lost")
