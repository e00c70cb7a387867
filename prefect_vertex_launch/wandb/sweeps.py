"""Sweeps at W&B, as far as launching their trials goes."""

from __future__ import annotations

import json
from typing import Any, cast

from prefect_vertex_launch.core.errors import NotFound, Problem, Refused
from prefect_vertex_launch.wandb.documents import GET_SWEEP, GET_SWEEP_STATE, SET_SWEEP_STATE
from prefect_vertex_launch.wandb.graphql import WandbGraphql, at

# The states in which W&B's own client would change a sweep to another one (apis/public/sweeps.py).
_UNDER_WAY = ("RUNNING", "PAUSED", "PENDING")


async def read_sweep_state(graphql: WandbGraphql, entity: str, project: str, sweep_id: str) -> str | None:
    """Return a sweep's state in capitals (`RUNNING`, `PAUSED`, `FINISHED`, `CANCELED`, …).

    None means that there is no such sweep, or none that the key may see: W&B answers both alike.
    Raises PermissionDenied where W&B says so.
    """
    variables = _variables(entity, project, sweep_id)
    try:
        found = at(await graphql.execute(GET_SWEEP_STATE, variables), "project", "sweep")
    except NotFound:
        return None
    return str(found["state"]).upper() if found is not None and found.get("state") else None


async def cancel_sweep(
    graphql: WandbGraphql, entity: str, project: str, sweep_id: str, *, queue: str
) -> None:
    """Cancel a sweep, as W&B's agent does when its scheduler failed; one that has ended is left alone.

    Raises NotFound when there is no such sweep, and Refused for one whose scheduler is not for this queue:
    whoever pushes an item can name any sweep in it.
    """
    variables = _variables(entity, project, sweep_id)
    found = at(await graphql.execute(GET_SWEEP, variables), "project", "sweep")
    if found is None:
        raise NotFound(Problem(f"sweep {entity}/{project}/{sweep_id}", "W&B has no such sweep"))
    if str(found.get("state")).upper() not in _UNDER_WAY:
        return
    if not _is_scheduled_by(found.get("scheduler"), queue):
        where = f"sweep {entity}/{project}/{sweep_id}"
        raise Refused(Problem(where, f"it was not launched on the queue {queue}, so it goes on"))
    change = {"id": found.get("id"), "state": "CANCELED", "entityName": entity, "projectName": project}
    await graphql.execute(SET_SWEEP_STATE, change)


def _is_scheduled_by(scheduler: object, queue: str) -> bool:
    """Tell whether a sweep's scheduler, as `wandb launch-sweep` left it there, is for a queue."""
    try:
        given: object = json.loads(scheduler) if isinstance(scheduler, str) else scheduler
    except (ValueError, RecursionError):
        return False
    return isinstance(given, dict) and cast("dict[str, Any]", given).get("queue") == queue


def _variables(entity: str, project: str, sweep_id: str) -> dict[str, Any]:
    return {"entity": entity, "project": project, "sweep": sweep_id}
