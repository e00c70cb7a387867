"""A run queue item as a flow run's parameter: what a later process needs to carry it on."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field

from vertex_launch.errors import Problem
from vertex_launch.wandb_queue import PoppedItem


class QueueItem(BaseModel):
    """One item of the run queue, without any secret."""

    item_id: str = Field(title="Item", description="The run queue item's id at W&B.")
    payload: Any = Field(
        default=None, title="Run spec", description="The run spec as it was popped, without its API key."
    )
    problem: tuple[str, str, str, str] | None = Field(
        default=None,
        title="Problem",
        description="Where, what, why and what to do, for an item whose run spec cannot be kept.",
    )

    @classmethod
    def from_popped(cls, popped: PoppedItem) -> QueueItem:
        """Return the item as it can be stored: Prefect keeps parameters as JSON in UTF-8."""
        problem = popped.problem
        payload = popped.payload
        if problem is None:
            try:
                json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                problem = Problem(
                    where=f"item {popped.item_id}",
                    what=f"the run spec is not JSON that can be stored: {error}",
                    why="NaN, Infinity and lone surrogates have no place in JSON",
                    fix="Correct the run spec and launch again.",
                )
        if problem is None:
            return cls(item_id=popped.item_id, payload=payload)
        return cls(item_id=popped.item_id, problem=(problem.where, problem.what, problem.why, problem.fix))

    def as_problem(self) -> Problem | None:
        """Return what is wrong with the item itself, or None."""
        return None if self.problem is None else Problem(*self.problem)

    @property
    def run_name(self) -> str | None:
        """The run's display name, if the run spec has one."""
        name = self.payload.get("name") if isinstance(self.payload, dict) else None
        return name if isinstance(name, str) and name else None
