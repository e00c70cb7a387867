"""A run queue item as a flow run's parameter: what a later process needs to carry it on."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, Final

from pydantic import BaseModel, Field

from prefect_vertex_launch.coordination.launch_store import LaunchRequest
from prefect_vertex_launch.core.errors import Problem
from prefect_vertex_launch.core.foreign_text import one_line
from prefect_vertex_launch.core.json_value import json_problems
from prefect_vertex_launch.jobspec.run_spec import RunSpec, derive_run_id, parse_run_spec
from prefect_vertex_launch.jobspec.withheld import Withheld
from prefect_vertex_launch.wandb.queue import PoppedItem, RunPath

MAX_TITLE_CHARACTERS = 200
# With some hundred variables, labels and arguments a run spec has a tenth of it.
LARGE_CHARACTERS: Final = 64 * 1024


class QueueItem(BaseModel):
    """One item of the run queue, without its API key.

    In Prefect it is kept without whatever else looks like a secret, too: see `kept`.
    """

    item_id: str = Field(title="Item", description="The run queue item's id at W&B.")
    payload: Any = Field(
        default=None,
        title="Run spec",
        description="The run spec as it was popped, without its API key.",
        repr=False,
    )
    withheld: list[str] = Field(
        default=[],
        title="Withheld",
        description="What looks like a secret in the run spec, and is not kept in Prefect; W&B has it.",
    )
    job_name: str | None = Field(
        default=None,
        title="Job",
        description=(
            "A CustomJob that runs already, of an item that another agent took; the run spec then says which "
            "run it is, and not how to launch it again."
        ),
    )
    problems: list[tuple[str, str, str, str]] = Field(
        default=[],
        title="Problems",
        description="Where, what, why and what to do, for an item whose run spec cannot be kept.",
    )

    @classmethod
    def from_popped(cls, popped: PoppedItem) -> QueueItem:
        """Return the item as it can be stored: a run spec that is no small JSON is left out, with why."""
        if popped.problem is not None:
            return cls.unusable(popped.item_id, popped.problem)
        if problems := json_problems(popped.payload, where=f"item {popped.item_id}"):
            return cls.unusable(popped.item_id, *problems)
        return cls(item_id=popped.item_id, payload=popped.payload)

    @classmethod
    def unusable(cls, item_id: str, *problems: Problem) -> QueueItem:
        """Return an item that can only be refused, for these reasons."""
        return cls(
            item_id=item_id,
            problems=[(problem.where, problem.what, problem.why, problem.fix) for problem in problems],
        )

    def as_problems(self) -> list[Problem]:
        """Return what is wrong with the item itself; nothing as a rule."""
        return [Problem(*parts) for parts in self.problems]

    def request(self) -> LaunchRequest:
        """Return what the flow run of this item's launch is made of."""
        return LaunchRequest(self.item_id, self.title, self.run, self.kept())

    def kept(self) -> dict[str, Any]:
        """Return the item as a flow run's parameter."""
        kept = self._without_secrets
        paths = [*self.withheld, *kept.paths]
        return self.model_copy(update={"payload": kept.payload, "withheld": paths}).model_dump(mode="json")

    @property
    def secrets(self) -> set[str]:
        """The texts of the run spec that look like secrets."""
        return self._without_secrets.secrets

    @cached_property
    def _without_secrets(self) -> Withheld:
        return Withheld(self.payload)

    @property
    def title(self) -> str:
        """What the item's flow run is called: as its W&B run, if that has a name."""
        name = self.payload.get("name") if isinstance(self.payload, dict) else None
        title = one_line(name)[:MAX_TITLE_CHARACTERS] if isinstance(name, str) else ""
        return title or f"item-{self.item_id}"

    @cached_property
    def spec(self) -> RunSpec | None:
        """The run spec as a typed value, or None for one that cannot be launched."""
        try:
            return parse_run_spec(self.payload, item_id=self.item_id)
        except Exception:  # noqa: BLE001 - who needs the run spec asks by `require_spec`, and is told
            return None

    @cached_property
    def is_large(self) -> bool:
        """Whether the run spec is larger than nearly all are."""
        return len(json.dumps(self.payload)) > LARGE_CHARACTERS

    def require_spec(self) -> RunSpec:
        """Return the run spec as a typed value. Raises InvalidRunSpec with everything that is wrong."""
        return self.spec or parse_run_spec(self.payload, item_id=self.item_id)

    @property
    def run(self) -> RunPath | None:
        """The W&B run that the item becomes, or None for a run spec that cannot be launched."""
        spec = self.spec
        return None if spec is None else run_of(spec, self.item_id)

    @property
    def is_scheduler(self) -> bool:
        """Whether the item is the scheduler of a sweep, which counts under a limit of its own."""
        spec = self.spec
        return spec is not None and spec.is_scheduler


def run_of(spec: RunSpec, item_id: str) -> RunPath:
    """Return the W&B run that an item with this run spec becomes, always the same one."""
    return RunPath(spec.entity, spec.project, spec.run_id or derive_run_id(item_id))
