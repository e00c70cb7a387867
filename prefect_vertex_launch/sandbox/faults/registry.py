"""What is to go wrong in the sandbox: faults, switched on and off while it is up.

Each server asks the registry at one point for what concerns the wire (HTTP middleware, gRPC
interceptor), and its backend asks for what concerns the meaning. While nothing is switched on, nothing
is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.sandbox.faults.kinds import ANY, Server, What
from prefect_vertex_launch.sandbox.faults.mistakes import Mistake, mistakes, plainly


class Fault(BaseModel):
    """One thing that goes wrong, where and how often.

    `server` is `wandb` or `vertex`, over REST and gRPC alike. `operation` is an RPC of Vertex AI's
    (`CreateCustomJob`), or at W&B a GraphQL operation by the name that its client gives it, a field of
    GraphQL's root (`popFromRunQueue`), or `file_stream`, `upload`, `download`, `artifact_file`,
    `telemetry`; `any` is every one to which the fault applies. `about` is a text, or a part of one, that the
    request has to hold: the name of a queue, an item, a run or a job, a label, a region.

    Of the calls that match, the first `skip` are left alone, each further one is hit with `probability`,
    drawn from `seed`, until `times` have been hit; None is no end.

    The rest says more about some faults. `status` is of HTTP, `code` a code of gRPC by its name; for
    Vertex AI either one gives the other. `state` is a job state, by name or by any number.

    Raises pydantic's ValidationError for a fault that could never happen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    server: Server
    what: What = Field(strict=False)
    operation: str = ANY
    about: str = ""
    times: int | None = Field(default=1, ge=1)
    skip: int = Field(default=0, ge=0)
    probability: float = Field(default=1.0, ge=0, le=1)
    seed: int = 0
    status: int | None = Field(default=None, ge=200, le=599)
    code: str | None = None
    message: str | None = None
    retry_after_seconds: int | None = Field(default=None, ge=0, le=86_400 * 365)
    seconds: float | None = Field(default=None, ge=0, le=86_400 * 365)
    lists: int | None = Field(default=None, ge=1)
    state: str | int | None = None
    run_spec: str | None = None
    size_bytes: int | None = Field(default=None, ge=2, le=200 * 1024 * 1024)

    @model_validator(mode="wrap")
    @classmethod
    def _says_all_that_is_wrong(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            fault = handler(values)
        except ValidationError as error:
            raise _refused(plainly(error.errors(include_url=False), cls.model_fields)) from None
        if found := mistakes(fault.model_dump(exclude_defaults=True)):
            raise _refused(found)
        return fault

    @property
    def state_number(self) -> int:
        """The job state as its number."""
        return JobState[self.state].value if isinstance(self.state, str) else self.state or 0


def _refused(found: Sequence[Mistake]) -> ValidationError:
    details = [
        InitErrorDetails(
            type=PydanticCustomError("fault", "{said}", {"said": said}),
            loc=(name,) if name else (),
            input=None,
        )
        for name, said in found
    ]
    return ValidationError.from_exception_data("Fault", details)


@dataclass(eq=False)
class Switch:
    """A fault that is switched on: `matched` calls were there for it, `hit` of them had it.

    `is_off` is set when it is switched off.
    """

    id: int
    fault: Fault
    matched: int = 0
    hit: int = 0
    is_off: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._random = Random(self.fault.seed)  # noqa: S311 - to be drawn alike again

    def hits(self) -> bool:
        """Count a call that matches, and tell whether this one goes wrong."""
        fault = self.fault
        if fault.times is not None and self.hit >= fault.times:
            return False
        self.matched += 1
        if self.matched <= fault.skip or self._random.random() >= fault.probability:
            return False
        self.hit += 1
        return True

    def to_json(self) -> dict[str, Any]:
        """Return the fault as it was given, with its id and counts."""
        counts = {"id": self.id, "matched": self.matched, "hit": self.hit}
        return counts | self.fault.model_dump(mode="json", exclude_defaults=True)


Listener = Callable[[Switch], Awaitable[None]]


class Faults:
    """The faults of one sandbox. `on` and `off` hear of each one that is switched on or off."""

    def __init__(self, *, on: Listener | None = None, off: Listener | None = None) -> None:
        self._switches: dict[int, Switch] = {}
        self._last_id = 0
        self._on = on
        self._off = off

    def __iter__(self) -> Iterator[Switch]:
        """Those that are switched on, the spent ones too, oldest first."""
        return iter(tuple(self._switches.values()))

    async def add(self, fault: Fault) -> Switch:
        """Switch a fault on; it is in force when this returns."""
        self._last_id += 1
        switch = self._switches[self._last_id] = Switch(self._last_id, fault)
        if self._on is not None:
            await self._on(switch)
        return switch

    async def remove(self, switch: Switch) -> None:
        """Switch a fault off: what hangs is cut, jobs that it holds go on, a server comes back."""
        if self._switches.pop(switch.id, None) is None:
            return
        switch.is_off.set()
        if self._off is not None:
            await self._off(switch)

    async def clear(self) -> None:
        """Switch all of them off."""
        for switch in self:
            await self.remove(switch)

    def abandon(self) -> None:
        """Forget all of them, for the end of the sandbox: nothing that hangs or waits outlives this."""
        for switch in self:
            switch.is_off.set()
        self._switches.clear()

    def are_on(self, server: Server) -> bool:
        """Tell whether there is anything to ask for at all."""
        return any(switch.fault.server == server for switch in self._switches.values())

    def take(
        self, server: Server, kinds: Collection[What], operations: Collection[str], texts: Collection[str]
    ) -> Switch | None:
        """Return the fault that hits this call, of these kinds, or None; the oldest goes first.

        `operations` are the names that the call goes by, `texts` those that it is about.
        """
        for switch in self._switches.values():
            fault = switch.fault
            if (
                fault.server == server
                and fault.what in kinds
                and (fault.operation == ANY or fault.operation in operations)
                and (not fault.about or any(fault.about in text for text in texts))
                and switch.hits()
            ):
                return switch
        return None
