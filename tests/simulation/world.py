"""The three remote systems, the way to them, and everything that happens between: effect by effect."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID

from prefect.states import Cancelling

from tests.simulation.auditor import Auditor
from tests.simulation.faults import TIMEOUT_SECONDS, Faults, Loss
from tests.simulation.prefect_model import PrefectModel
from tests.simulation.process import Process
from tests.simulation.scripts import Script
from tests.simulation.vertex_model import VertexModel
from tests.simulation.violation import Violation, unforeseen
from tests.simulation.virtual_time import VirtualClock, VirtualLoop
from tests.simulation.wandb_model import RUN_PROJECT, WandbModel

T = TypeVar("T")

LAST_EFFECTS = 30
# When somebody asks again for an end that could not be asked for.
PATIENCE_SECONDS = 30.0
# More than this is a storm: a simulation needs a few thousand.
MOST_EFFECTS = 60_000


class Moment(Enum):
    """Where a process dies, seen from one effect."""

    BEFORE = "before it"
    UNANSWERED = "after it, before the answer"
    AFTER = "after the answer"


@dataclass(frozen=True)
class Crash:
    """The death of whoever has the n-th effect."""

    effect: int
    moment: Moment


class _Answer(NamedTuple):
    """What becomes of a call: the value or the error that the other side answers, and what is lost of it."""

    value: object = None
    error: Exception | None = None
    loss: Loss = Loss.NOTHING

    def __str__(self) -> str:
        if not self.loss.is_carried_out:
            return f"{self.loss.value} lost"
        done = "done" if self.error is None else f"{type(self.error).__name__}: {self.error}"
        return done if self.loss is Loss.NOTHING else f"{done}, unanswered"


class World:
    """The systems, the faults on the way to them, and who watches."""

    def __init__(self, loop: VirtualLoop, random: Random, faults: Faults, *, max_jobs: int) -> None:
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.random = random
        self.faults = faults
        self.wandb = WandbModel(loop.time, _spec_of)
        self.vertex = VertexModel(loop.time, lambda run_id: self.wandb.item_of_run[run_id].script)
        self.wandb.program_state = self.vertex.program_state
        self.prefect = PrefectModel(loop.time)
        self.processes: dict[UUID, Process] = {}
        self.auditor = Auditor(
            self.wandb, self.vertex, self.prefect, self.processes, loop.time, faults.until, max_jobs
        )
        self.crash: Crash | None = None
        self.effects = 0
        # The numbers of those that their own process gave up on the way there.
        self.abandoned: set[int] = set()
        # Put into words only when somebody wants to read them.
        self._last_effects: deque[tuple[object, ...]] = deque(maxlen=LAST_EFFECTS)
        self.on_death: Callable[[Process], None] = lambda _: None
        self.failed: asyncio.Future[None] = loop.create_future()

    async def effect(
        self,
        process: Process,
        system: str,
        name: str,
        apply: Callable[[], T],
        lost: Callable[[Loss], Exception],
        *,
        subject: object = "",
        is_write: bool = False,
    ) -> T:
        """Do one thing at a remote system for a process, with whatever may go wrong on the way."""
        if process.is_frozen:
            await process.thaw()
        number = self._count_effect(process)
        way = self.faults.way(system, self.loop.time(), process.place)
        if way.is_disturbed:
            process.disturbed = max(process.disturbed, self.loop.time() + TIMEOUT_SECONDS)
        await self._arrive(process, number, way.there_seconds)
        if self.crash is not None:
            self._die_at(number, Moment.BEFORE, process, f"{system}.{name}({subject})")
        if not way.loss.is_carried_out:
            self._note(process, number, system, name, subject, _Answer(loss=way.loss))
            await process.thaw()
            raise lost(way.loss)
        answer = self._applied(apply, way.loss)
        self._note(process, number, system, name, subject, answer)
        if is_write:
            self._look()
        if self.crash is not None:
            self._die_at(number, Moment.UNANSWERED, process, f"{system}.{name}({subject})")
        if way.back_seconds:
            await self.loop.sleep(way.back_seconds)
        if process.is_frozen:
            await process.thaw()
        if way.loss is Loss.ANSWER:
            raise lost(way.loss)
        if self.crash is not None and self.crash == Crash(number, Moment.AFTER):
            self.loop.call_soon(self.kill, process)
        if answer.error is not None:
            raise answer.error
        return cast("T", answer.value)

    async def _arrive(self, process: Process, number: int, seconds: float) -> None:
        try:
            await self.loop.sleep(seconds)
        except asyncio.CancelledError:
            self.abandoned.add(number)
            raise
        if process.is_dead:
            raise asyncio.CancelledError

    def _count_effect(self, process: Process) -> int:
        if process.is_dead:
            raise asyncio.CancelledError
        self.effects += 1
        if self.effects > MOST_EFFECTS:
            self.fail(Violation(f"more than {MOST_EFFECTS} effects: a storm"))
        return self.effects

    def _applied(self, apply: Callable[[], object], loss: Loss) -> _Answer:
        try:
            return _Answer(apply(), None, loss)
        except Violation as error:
            self.fail(error)
            raise asyncio.CancelledError from error
        except Exception as error:
            return _Answer(None, error, loss)

    def fail(self, error: BaseException) -> None:
        """End the simulation with an error; the first one counts."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def surprise(self, what: str) -> None:
        """End the simulation with something that the code under test had not reckoned with."""
        self.fail(unforeseen(what))

    def _look(self) -> None:
        try:
            self.auditor.look()
        except Violation as error:
            self.fail(error)
            raise asyncio.CancelledError from error

    def kill(self, process: Process) -> None:
        """Let a process die, as kill -9 does."""
        if not process.is_dead:
            self.note(process.name, "dies")
            process.die()
            self.on_death(process)

    def note(self, who: str, what: str) -> None:
        """Note something that is no effect."""
        self._last_effects.append((self.loop.time(), who, what))

    @property
    def last_effects(self) -> list[str]:
        """The last effects, a line each."""
        return [_line(*noted) for noted in self._last_effects]

    def stop_run(self, run_id: str) -> None:
        """Somebody stops a run at W&B, as soon as there is a run."""
        item = self.wandb.item_of_run[run_id]
        state = self.vertex.program_state(run_id)
        if state == "running":
            item.is_stopped = True
            self.vertex.stop_program(run_id)
            self.auditor.asked_to_end(item.item_id)
            self.note("somebody", f"stops run {run_id} of item {item.item_id}")
        elif item.item_id in dict(self.auditor.unsettled_items()):
            self.loop.call_later(PATIENCE_SECONDS, self.stop_run, run_id)

    def cancel_launch(self, item_id: str) -> None:
        """Somebody cancels a launch in Prefect, again until Prefect takes it."""
        flow_run_id = self.prefect.launches[item_id]
        if self.prefect.set_state(flow_run_id, Cancelling(), force=False).is_cancelling():
            self.auditor.asked_to_end(item_id)
            self.note("somebody", f"cancels the launch of item {item_id}")
        elif item_id in dict(self.auditor.unsettled_items()):
            self.loop.call_later(PATIENCE_SECONDS, self.cancel_launch, item_id)

    def _die_at(self, number: int, moment: Moment, process: Process, what: str) -> None:
        if self.crash == Crash(number, moment):
            self.note(process.name, f"dies at {what}, {moment.value}")
            process.die()
            self.on_death(process)
            raise asyncio.CancelledError

    def _note(
        self, process: Process, number: int, system: str, name: str, subject: object, how: _Answer
    ) -> None:
        self._last_effects.append((self.loop.time(), process.name, how, number, system, name, subject))


def _line(
    seconds: float,
    who: str,
    what: object,
    number: int = 0,
    system: str = "",
    name: str = "",
    subject: object = "",
) -> str:
    if not number:
        return f"{seconds:10.2f}         {who} {what}"
    return f"{seconds:10.2f} {number:6d}  {who} {system}.{name}({subject}): {what}"


def _spec_of(script: Script) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "entity": "team",
        "project": RUN_PROJECT,
        "docker": {"docker_image": "image"},
        "resource": "gcp-vertex",
        "overrides": {"args": []},
    }
    if script.is_poison:
        spec["resource_args"] = {"gcp-vertex": {"spec": {"worker_pool_spec": 1}}}
    return spec
