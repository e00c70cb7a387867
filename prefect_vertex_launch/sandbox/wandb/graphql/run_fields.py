"""The GraphQL fields about runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.sandbox.wandb.graphql.user_fields import (
    Resolver,
    View,
    page,
    project_view,
    user_view,
)
from prefect_vertex_launch.sandbox.wandb.ids import make_id
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal, parse_json_object
from prefect_vertex_launch.sandbox.wandb.runs import Run, RunState
from prefect_vertex_launch.sandbox.wandb.storage import StoredFile, run_files_folder

Args = Mapping[str, Any]
_SUCCESS: View = {"success": True, "clientMutationId": None}


def run_view(backend: WandbBackend, run: Run) -> View:
    """Return a run; what it streamed is resolved on demand."""
    project = backend.ensure_project(run.entity, run.project)
    return {
        "id": run.id,
        "name": run.name,
        "run": run,
        "projectId": str(project.internal_id),
        "project": project_view(backend, project),
        "displayName": run.display_name,
        "description": run.description,
        "notes": run.notes,
        "tags": run.tags,
        "group": run.group,
        "jobType": run.job_type,
        "commit": run.commit,
        "host": run.host,
        "sweepName": run.sweep,
        "state": run.state,
        "stopped": run.stopped,
        "shouldStop": run.stopped,
        "running": run.state == RunState.RUNNING,
        "failed": run.state in {RunState.FAILED, RunState.CRASHED, RunState.KILLED},
        "exitcode": run.exit_code,
        "readOnly": False,
        "user": user_view(backend),
        "createdAt": run.created_at,
        "updatedAt": run.updated_at,
        "heartbeatAt": datetime.fromtimestamp(run.heartbeat, UTC).isoformat(),
        "config": json.dumps(run.config),
        "wandbConfig": json.dumps(run.config.get("_wandb", {}).get("value", {})),
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": "{}",
        "historyLineCount": run.line_counts.get("history", 0),
        "eventsLineCount": run.line_counts.get("events", 0),
        "logLineCount": run.line_counts.get("output", 0),
    }


def file_view(backend: WandbBackend, file: StoredFile) -> View:
    """Return a stored file with where to get it."""
    url = backend.storage.url(file.path)
    return {
        "id": make_id("File", file.path),
        "name": file.name,
        "displayName": file.name,
        "url": url,
        "directUrl": url,
        "sizeBytes": file.size_bytes,
        "storagePath": file.path,
        "md5": file.md5,
        "digest": file.md5,
        "uploadHeaders": [],
        "updatedAt": None,
    }


def _run(project: View, backend: WandbBackend, args: Args) -> View | None:
    run = backend.runs.get(project["entityName"], project["name"], args["name"])
    return run_view(backend, run) if run else None


def _runs_of(project: View, backend: WandbBackend, args: Args) -> list[Run]:
    if args.get("filters") and parse_json_object(args["filters"], what="filters"):
        raise WandbRefusal(400, "filters on runs are not supported by the sandbox")
    return backend.runs.of_project(project["entityName"], project["name"])


def _runs(project: View, backend: WandbBackend, args: Args) -> View:
    runs = _runs_of(project, backend, args)
    if (args.get("order") or "").startswith("-"):
        runs.reverse()
    return page([run_view(backend, run) for run in runs], args)


def _run_count(project: View, backend: WandbBackend, args: Args) -> int:
    return len(_runs_of(project, backend, args))


def _history_keys(view: View, backend: WandbBackend, _args: Args) -> View | None:
    rows = backend.runs.history(view["run"])
    if not rows:
        return None
    keys = {key: {"typeCounts": [{"type": _type_name(value)}]} for row in rows for key, value in row.items()}
    return {"sets": [], "keys": keys, "lastStep": rows[-1].get("_step", len(rows) - 1)}


def _type_name(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return "string" if isinstance(value, str) else "map"


def _history(view: View, backend: WandbBackend, args: Args) -> list[str]:
    rows = _between(backend.runs.history(view["run"]), args.get("minStep"), args.get("maxStep"))
    return [json.dumps(row) for row in _sampled(rows, args.get("samples"))]


def _events(view: View, backend: WandbBackend, args: Args) -> list[str]:
    return _sampled(backend.runs.lines(view["run"], "events"), args.get("samples"))


def _sampled_history(view: View, backend: WandbBackend, args: Args) -> list[list[View]]:
    history = backend.runs.history(view["run"])
    return [_matching(history, parse_json_object(spec, what="spec")) for spec in args["specs"]]


def _matching(history: list[View], spec: View) -> list[View]:
    keys: list[str] = spec.get("keys") or []
    last = spec.get("maxStep")
    rows = _between(history, spec.get("minStep"), None if last is None else last + 1)
    complete = [row for row in rows if all(key in row for key in keys)]
    return [{key: row[key] for key in keys} for row in _sampled(complete, spec.get("samples"))]


def _between(rows: list[View], first: int | None, end: int | None) -> list[View]:
    return [
        row
        for place, row in enumerate(rows)
        if (first is None or row.get("_step", place) >= first)
        and (end is None or row.get("_step", place) < end)
    ]


def _sampled(rows: list[Any], samples: int | None) -> list[Any]:
    if not samples or len(rows) <= samples:
        return rows
    return [rows[place * len(rows) // samples] for place in range(samples)]


def _parquet_history(view: View, backend: WandbBackend, _args: Args) -> View:
    # Nothing is ever exported: the whole history is live.
    steps = [row["_step"] for row in backend.runs.history(view["run"]) if "_step" in row]
    return {"parquetUrls": [], "liveData": [{"_step": step} for step in steps[:1]]}


def _tail(kind: str) -> Resolver:
    def resolve(view: View, backend: WandbBackend, _args: Args) -> str:
        return json.dumps(backend.runs.lines(view["run"], kind)[-1:])

    return resolve


def _files_of(view: View, backend: WandbBackend) -> list[StoredFile]:
    run: Run = view["run"]
    return backend.storage.listing(run_files_folder(run.entity, run.project, run.name))


def _files(view: View, backend: WandbBackend, args: Args) -> View:
    names = args.get("names")
    files = [file for file in _files_of(view, backend) if not names or file.name in names]
    return page([file_view(backend, file) for file in files], args)


def _file_count(view: View, backend: WandbBackend, _args: Args) -> int:
    return len(_files_of(view, backend))


def _upsert_bucket(_root: None, backend: WandbBackend, values: Args) -> View:
    project = backend.ensure_project(values.get("entityName"), values.get("modelName") or "uncategorized")
    run, inserted = backend.runs.upsert(project.entity, project.name, values)
    return {"bucket": run_view(backend, run), "inserted": inserted}


def _shown(backend: WandbBackend, global_id: str) -> Run:
    run = backend.runs.by_id(global_id)
    if backend.is_hidden(run.entity):
        raise WandbRefusal(404, "run not found")
    return run


def _update_run_state(_root: None, backend: WandbBackend, values: Args) -> View:
    backend.runs.update_state(_shown(backend, values["id"]), values["state"])
    return _SUCCESS


def _stop_run(_root: None, backend: WandbBackend, values: Args) -> View:
    backend.runs.stop(_shown(backend, values["id"]))
    return _SUCCESS


def _delete_run(_root: None, backend: WandbBackend, values: Args) -> View:
    backend.runs.delete(_shown(backend, values["id"]))
    return _SUCCESS


def _create_run_files(_root: None, backend: WandbBackend, values: Args) -> View:
    entity, project, name = values["entityName"], values["projectName"], values["runName"]
    run = backend.runs.get(entity, project, name)
    if run is None:
        raise WandbRefusal(404, f"run {entity}/{project}/{name} not found")
    folder = run_files_folder(entity, project, name)
    files = [
        {"id": make_id("File", folder + file), "name": file, "uploadUrl": backend.storage.url(folder + file)}
        for file in values["files"]
    ]
    return {"runID": run.id, "uploadHeaders": [], "files": files}


RUN_FIELDS: Mapping[str, Resolver] = {
    "Project.run": _run,
    "Project.bucket": _run,
    "Project.runs": _runs,
    "Project.runCount": _run_count,
    "Run.historyKeys": _history_keys,
    "Run.history": _history,
    "Run.events": _events,
    "Run.sampledHistory": _sampled_history,
    "Run.parquetHistory": _parquet_history,
    "Run.historyTail": _tail("history"),
    "Run.eventsTail": _tail("events"),
    "Run.files": _files,
    "Run.fileCount": _file_count,
    "Mutation.upsertBucket": _upsert_bucket,
    "Mutation.updateRunState": _update_run_state,
    "Mutation.stopRun": _stop_run,
    "Mutation.deleteRun": _delete_run,
    "Mutation.createRunFiles": _create_run_files,
}
