"""The GraphQL fields about sweeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.sandbox.wandb.graphql.run_fields import run_view
from prefect_vertex_launch.sandbox.wandb.graphql.user_fields import Resolver, View, page
from prefect_vertex_launch.sandbox.wandb.runs import Run
from prefect_vertex_launch.sandbox.wandb.sweeps import Sweep

Args = Mapping[str, Any]


def _sweep_view(backend: WandbBackend, sweep: Sweep) -> View:
    return {
        "id": sweep.key,
        "name": sweep.name,
        "sweep": sweep,
        "method": sweep.method,
        "state": sweep.state,
        "config": sweep.config,
        "scheduler": None if sweep.queue is None else json.dumps({"queue": sweep.queue, "run_spec": "{}"}),
        "createdAt": sweep.created_at,
        "updatedAt": sweep.updated_at,
        "runCount": len(_runs_of(backend, sweep)),
    }


def _runs_of(backend: WandbBackend, sweep: Sweep) -> list[Run]:
    runs = backend.runs.of_project(sweep.entity, sweep.project)
    return [run for run in runs if run.sweep == sweep.name]


def _sweep(project: View, backend: WandbBackend, args: Args) -> View | None:
    sweep = backend.sweeps.get(project["entityName"], project["name"], args["sweepName"])
    return _sweep_view(backend, sweep) if sweep else None


def _runs(view: View, backend: WandbBackend, args: Args) -> View:
    return page([run_view(backend, run) for run in _runs_of(backend, view["sweep"])], args)


def _upsert_sweep(_root: None, backend: WandbBackend, values: Args) -> View:
    sweep = backend.sweeps.set_state(values.get("id"), values.get("state"))
    return {"sweep": _sweep_view(backend, sweep)}


SWEEP_FIELDS: Mapping[str, Resolver] = {
    "Project.sweep": _sweep,
    "Sweep.runs": _runs,
    "Mutation.upsertSweep": _upsert_sweep,
}
