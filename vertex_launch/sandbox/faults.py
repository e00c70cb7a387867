"""What is to go wrong in the sandbox: faults, switched on and off while it is up.

Each server asks the registry at one point for what concerns the wire (HTTP middleware, gRPC
interceptor), and its backend asks for what concerns the meaning. While nothing is switched on, nothing
is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any, Final, Literal, Self, cast

import grpc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vertex_launch.sandbox.vertex_refusal import STATUSES
from vertex_launch.spelling import right_spelling
from vertex_launch.vertex_types import JobState

Server = Literal["wandb", "vertex"]
ANY: Final = "any"
RPCS: Final = ("CreateCustomJob", "GetCustomJob", "ListCustomJobs", "CancelCustomJob", "DeleteCustomJob")


class What(StrEnum):
    """What goes wrong; docs/faults.md says for each what a client sees."""

    # On the wire, at both servers.
    ANSWER = "answer"
    CUT_BEFORE = "cut_before"
    CUT_AFTER = "cut_after"
    CUT_MIDWAY = "cut_midway"
    GARBAGE = "garbage"
    HANG = "hang"
    HANG_AFTER = "hang_after"
    SLOW = "slow"
    DOWN = "down"
    # What the answer says or what becomes of the thing it is about.
    DELETED = "deleted"
    HIDDEN = "hidden"
    OMITTED = "omitted"
    DOUBLED = "doubled"
    PAGE_DRIFT = "page_drift"
    STALE = "stale"
    STATE = "state"
    NULL = "null"
    FALSE = "false"
    SAME_ITEM = "same_item"
    LEASE_ENDS = "lease_ends"
    RUN_SPEC = "run_spec"
    STOP_POLLING = "stop_polling"


WIRE: Final = frozenset({
    What.ANSWER, What.CUT_BEFORE, What.CUT_AFTER, What.CUT_MIDWAY, What.GARBAGE, What.HANG, What.HANG_AFTER,
    What.SLOW,
})  # fmt: skip
_OPERATIONS_AT_VERTEX: Final[dict[What, tuple[str, ...]]] = {
    What.DELETED: ("GetCustomJob", "ListCustomJobs", "CancelCustomJob"),
    What.HIDDEN: ("CreateCustomJob",),
    What.OMITTED: ("ListCustomJobs",),
    What.DOUBLED: ("ListCustomJobs",),
    What.PAGE_DRIFT: ("ListCustomJobs",),
    What.STALE: ("GetCustomJob", "ListCustomJobs"),
    What.STATE: ("CreateCustomJob", "GetCustomJob", "ListCustomJobs", "CancelCustomJob"),
    **dict.fromkeys(WIRE, RPCS),
}
_AT_WANDB: Final = WIRE | {
    What.DELETED, What.NULL, What.FALSE, What.SAME_ITEM, What.LEASE_ENDS, What.RUN_SPEC, What.STOP_POLLING,
}  # fmt: skip
_NEEDED: Final[dict[What, tuple[str, ...]]] = {
    What.SLOW: ("seconds",),
    What.STATE: ("state",),
    What.HIDDEN: ("lists", "seconds"),
    What.RUN_SPEC: ("run_spec", "size_bytes"),
}


class Fault(BaseModel):
    """One thing that goes wrong, where and how often.

    `server` is `wandb` or `vertex`, over REST and gRPC alike. `operation` is an RPC of Vertex AI's
    (`CreateCustomJob`), or at W&B a GraphQL operation by the name that its client gives it, a field of
    GraphQL's root (`popFromRunQueue`), or `file_stream`, `upload`, `download`, `artifact_file`,
    `telemetry`; `any` is every one to which the fault applies. `about` is a text that the request has to
    hold: the name of a queue, an item, a run or a job, a label, a region.

    Of the calls that match, the first `skip` are left alone, each further one is hit with `probability`,
    drawn from `seed`, until `times` have been hit; None is no end.

    The rest says more about some faults. `status` is of HTTP, `code` a code of gRPC by its name; for
    Vertex AI either one gives the other. `state` is a job state, by name or by any number.

    Raises pydantic's ValidationError for a fault that could never happen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: Server
    what: What
    operation: str = ANY
    about: str = ""
    times: int | None = Field(default=1, ge=1)
    skip: int = Field(default=0, ge=0)
    probability: float = Field(default=1.0, ge=0, le=1)
    seed: int = 0
    status: int | None = Field(default=None, ge=200, le=599)
    code: str | None = None
    message: str | None = None
    retry_after_seconds: int | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=None, ge=0, le=86_400 * 365)
    lists: int | None = Field(default=None, ge=1)
    state: str | int | None = None
    run_spec: str | None = None
    size_bytes: int | None = Field(default=None, ge=2, le=200 * 1024 * 1024)

    @model_validator(mode="before")
    @classmethod
    def _knows_its_fields(cls, values: Any) -> Any:
        for name in cast("dict[str, Any]", values) if isinstance(values, dict) else ():
            meant = None if name in cls.model_fields else right_spelling(name, cls.model_fields)
            if meant:
                raise ValueError(f"there is no field {name!r}: did you mean {meant!r}?")
        return cast("Any", values)

    @model_validator(mode="after")
    def _can_happen(self) -> Self:
        if self.what is not What.DOWN:
            self._check_operation()
        elif self.operation != ANY or self.about:
            raise ValueError("a server that is down is so for every operation")
        needed = _NEEDED.get(self.what, ())
        if needed and all(getattr(self, name) is None for name in needed):
            raise ValueError(f"{self.what.value!r} needs {' or '.join(needed)}")
        if self.what is What.ANSWER and self.status is None and (self.server == "wandb" or not self.code):
            raise ValueError(f"{self.what.value!r} needs {'status' if self.server == 'wandb' else 'code'}")
        _check_name("code", self.code, [code.name for code in grpc.StatusCode])
        if isinstance(self.state, str):
            _check_name("state", self.state, list(JobState.__members__))
        elif self.state is not None and not 0 <= self.state < 2**31:
            raise ValueError("a state's number is from 0 to 2147483647")
        if self.server == "vertex" and self.code is None and self.what is What.ANSWER:
            _check_name("status", str(self.status), [str(status) for status in STATUSES])
        return self

    def _check_operation(self) -> None:
        if self.server == "wandb":
            if self.what not in _AT_WANDB:
                raise ValueError(f"{self.what.value!r} is not a fault of W&B's")
            return
        known = _OPERATIONS_AT_VERTEX.get(self.what)
        if known is None:
            raise ValueError(f"{self.what.value!r} is not a fault of Vertex AI's")
        if self.operation != ANY:
            _check_name("operation", self.operation, known)

    @property
    def state_number(self) -> int:
        """The job state as its number."""
        return JobState[self.state].value if isinstance(self.state, str) else self.state or 0


def _check_name(field_name: str, value: str | None, known: Collection[str]) -> None:
    if value is None or value in known:
        return
    meant = right_spelling(value, known)
    hint = f"did you mean {meant!r}?" if meant else f"there are: {', '.join(known)}"
    raise ValueError(f"{field_name} {value!r} cannot be used here; {hint}")


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
        self, server: Server, kinds: Collection[What], operations: Collection[str], about: str
    ) -> Switch | None:
        """Return the fault that hits this call, of these kinds, or None; the oldest goes first.

        `operations` are the names that the call goes by, `about` the text of its request.
        """
        for switch in self._switches.values():
            fault = switch.fault
            if (
                fault.server == server
                and fault.what in kinds
                and (fault.operation == ANY or fault.operation in operations)
                and fault.about in about
                and switch.hits()
            ):
                return switch
        return None
