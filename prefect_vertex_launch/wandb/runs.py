"""Runs at W&B, seen from outside their process: their state, and whether they are to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefect_vertex_launch.core.errors import AuthenticationFailed, NotFound, Permanent, Problem
from prefect_vertex_launch.wandb.documents import GET_RUN_STATE, run_statuses
from prefect_vertex_launch.wandb.graphql import WandbGraphql, at, text_at

RUNS_PER_REQUEST = 50


@dataclass(frozen=True, slots=True)
class RunPath:
    """The address of a W&B run."""

    entity: str
    project: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}/{self.run_id}"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as W&B has it: `state` is `pending`, `running`, `finished`, …; `is_stopped` that it is to end."""

    state: str | None
    is_stopped: bool


async def read_runs(graphql: WandbGraphql, runs: Sequence[RunPath]) -> dict[RunPath, RunRecord]:
    """Return the runs that W&B knows and shows, with one request for each 50 of those asked for."""
    found: dict[RunPath, RunRecord] = {}
    for start in range(0, len(runs), RUNS_PER_REQUEST):
        found |= await _read_batch(graphql, runs[start : start + RUNS_PER_REQUEST])
    return found


async def _read_batch(graphql: WandbGraphql, runs: Sequence[RunPath]) -> dict[RunPath, RunRecord]:
    variables: dict[str, str] = {}
    for number, run in enumerate(runs):
        variables |= {f"e{number}": run.entity, f"p{number}": run.project, f"r{number}": run.run_id}
    try:
        data = await graphql.execute(run_statuses(len(runs)), variables)
    except AuthenticationFailed:
        raise
    except Permanent:
        # One run that W&B will not show (a private project, say) must not hide the rest.
        if len(runs) == 1:
            return {}
        half = len(runs) // 2
        return await _read_batch(graphql, runs[:half]) | await _read_batch(graphql, runs[half:])
    answers = {run: at(data, f"run{number}", "run") for number, run in enumerate(runs)}
    return {
        run: RunRecord(state=text_at(answer, "state"), is_stopped=bool(answer.get("stopped")))
        for run, answer in answers.items()
        if answer is not None
    }


async def read_run_state(graphql: WandbGraphql, run: RunPath, *, own_entity: str) -> str | None:
    """Return a run's state, or None: there is no such run.

    W&B answers alike for a project that is not there and for one that the key may not see. In the
    queue's own entity that is taken for a project which no run was ever written to. Of another entity's
    project nothing can be known then: raises NotFound, or PermissionDenied where W&B says so.
    """
    variables = {"entity": run.entity, "project": run.project, "name": run.run_id}
    refusal: NotFound | None = None
    project = None
    try:
        project = at(await graphql.execute(GET_RUN_STATE, variables), "project")
    except NotFound as error:
        refusal = error
    if project is None:
        if run.entity == own_entity:
            return None
        raise NotFound(
            Problem(
                f"run {run}",
                "W&B does not show its project, so whether the run exists cannot be known",
                why=f"a key of {own_entity} need not see the projects of {run.entity}",
                fix=f"Give the launch agent a key that may read {run.entity}/{run.project}.",
            )
        ) from refusal
    found = at(project, "run")
    return None if found is None else text_at(found, "state")
