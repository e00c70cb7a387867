"""The GraphQL fields about the user, the team and its projects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_vertex_launch.sandbox.wandb.backend import USERNAME, Project, WandbBackend
from prefect_vertex_launch.sandbox.wandb.ids import make_id

View = dict[str, Any]
# Takes the object the field belongs to (None at the root), the backend and the field's arguments;
# a mutation gets the fields of its `input`.
Resolver = Callable[[Any, WandbBackend, Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class RawJson:
    """JSON text that goes into an answer as it is, however odd."""

    text: str


def entity_view(name: str) -> View:
    """Return a team."""
    return {
        "id": make_id("Entity", name),
        "name": name,
        "isTeam": True,
        "organization": {"name": name, "coreWeaveOrganizationId": None, "featureFlags": []},
    }


def user_view(backend: WandbBackend) -> View:
    """Return the user whom the API key belongs to."""
    team = entity_view(backend.entity)
    return {
        "id": make_id("User", 1),
        "name": "Sandbox User",
        "username": USERNAME,
        "email": "sandbox-user@localhost",
        "admin": False,
        "flags": "{}",
        "entity": backend.entity,
        "accountType": "USER",
        "createdAt": "2024-01-01T00:00:00",
        "apiKeys": {"edges": []},
        "teams": {"edges": [{"node": team}]},
        "defaultEntity": team,
    }


def project_view(backend: WandbBackend, project: Project) -> View:
    """Return a project; its queues, runs and artifacts are resolved on demand."""
    return {
        "entity": entity_view(project.entity),
        "id": project.id,
        "internalId": make_id("ProjectInternalId", project.internal_id),
        "name": project.name,
        "entityName": project.entity,
        "description": None,
        "access": "PRIVATE",
        "views": None,
        "createdAt": project.created_at,
        "isBenchmark": False,
        "readOnly": False,
        "user": user_view(backend),
    }


def page(items: list[View], args: Mapping[str, Any], *, default_size: int = 50) -> View:
    """Return the `first` items after the cursor `after` as a connection; a cursor is a position."""
    after = args.get("after")
    start = int(after) if after and after.isdigit() else 0
    first = args.get("first")
    end = start + (default_size if first is None else first)
    edges = [{"node": item, "cursor": str(place)} for place, item in enumerate(items[start:end], start + 1)]
    return {
        "totalCount": len(items),
        "edges": edges,
        "pageInfo": {"endCursor": edges[-1]["cursor"] if edges else None, "hasNextPage": end < len(items)},
    }


def _viewer(_root: None, backend: WandbBackend, _args: Mapping[str, Any]) -> View:
    return user_view(backend)


def _server_info(_root: None, _backend: WandbBackend, _args: Mapping[str, Any]) -> View:
    return {"features": [], "cliVersionInfo": '{"max_cli_version": "99.0.0"}', "latestLocalVersionInfo": None}


def _entity(_root: None, backend: WandbBackend, args: Mapping[str, Any]) -> View | None:
    return entity_view(backend.entity) if args["name"] == backend.entity else None


def _organization(_root: None, backend: WandbBackend, args: Mapping[str, Any]) -> View | None:
    return entity_view(backend.entity)["organization"] if args["name"] == backend.entity else None


def _project(_root: None, backend: WandbBackend, args: Mapping[str, Any]) -> View | None:
    entity = args.get("entityName")
    project = None if backend.is_hidden(entity) else backend.project(entity, args.get("name"))
    return project_view(backend, project) if project else None


def _upsert_model(_root: None, backend: WandbBackend, values: Mapping[str, Any]) -> View:
    entity, name = values.get("entityName"), values.get("name") or "uncategorized"
    inserted = backend.project(entity, name) is None
    view = project_view(backend, backend.ensure_project(entity, name))
    return {"project": view, "model": view, "inserted": inserted}


FIELDS: Mapping[str, Resolver] = {
    "Query.viewer": _viewer,
    "Query.serverInfo": _server_info,
    "Query.entity": _entity,
    "Query.organization": _organization,
    "Query.project": _project,
    "Query.model": _project,
    "Mutation.upsertModel": _upsert_model,
}
