"""The GraphQL fields about artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_vertex_launch.sandbox.wandb.artifacts import Artifact
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.sandbox.wandb.graphql.run_fields import file_view
from prefect_vertex_launch.sandbox.wandb.graphql.user_fields import Resolver, View, page, project_view
from prefect_vertex_launch.sandbox.wandb.ids import make_id
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal

Args = Mapping[str, Any]


def _artifact_view(backend: WandbBackend, artifact: Artifact) -> View:
    files = backend.artifacts.files(artifact)
    return {
        "artifact": artifact,
        "id": artifact.id,
        "artifactSequence": _sequence_view(backend, artifact),
        "artifactType": {"name": artifact.type},
        "versionIndex": artifact.version_index,
        "description": artifact.description,
        "metadata": artifact.metadata,
        # The client's models want an integer; 0 means that a version is kept for ever.
        "ttlDurationSeconds": 0,
        "ttlIsInherited": True,
        "tags": [{"id": make_id("Tag", tag), "name": tag} for tag in artifact.tags],
        "aliases": _alias_views(backend, artifact),
        "state": artifact.state,
        "size": sum(file.size_bytes for file in files),
        "digest": artifact.digest,
        "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": artifact.digest,
        "fileCount": len(files),
        "createdAt": artifact.created_at,
        "updatedAt": artifact.created_at,
        "currentManifest": _manifest_view(backend, artifact),
    }


def _manifest_view(backend: WandbBackend, artifact: Artifact) -> View:
    url = backend.storage.url(artifact.manifest_path)
    file: View = {
        "id": make_id("File", artifact.manifest_path),
        "name": "wandb_manifest.json",
        "directUrl": url,
        "uploadUrl": url,
        "uploadHeaders": [],
    }
    return {"id": make_id("ArtifactManifest", artifact.id), "file": file}


def _sequence_view(backend: WandbBackend, artifact: Artifact) -> View:
    return {
        "__typename": "ArtifactSequence",
        "artifact": artifact,
        "id": make_id("ArtifactCollection", f"{artifact.entity}/{artifact.project}/{artifact.collection}"),
        "name": artifact.collection,
        "project": project_view(backend, backend.ensure_project(artifact.entity, artifact.project)),
    }


def _alias_views(backend: WandbBackend, artifact: Artifact) -> list[View]:
    return [
        {
            "id": make_id("ArtifactAlias", f"{artifact.id}/{alias}"),
            "alias": alias,
            "artifactCollection": _sequence_view(backend, artifact),
        }
        for alias in artifact.aliases
    ]


def _membership_view(backend: WandbBackend, artifact: Artifact) -> View:
    return {
        "artifact": _artifact_view(backend, artifact),
        "id": make_id("ArtifactCollectionMembership", artifact.id),
        "versionIndex": artifact.version_index,
        "createdAt": artifact.created_at,
        "aliases": _alias_views(backend, artifact),
        "artifactCollection": _sequence_view(backend, artifact),
    }


def _named(project: View, backend: WandbBackend, name: str) -> Artifact | None:
    return backend.artifacts.named(project["entityName"], project["name"], name)


def _artifact_by_id(_root: None, backend: WandbBackend, args: Args) -> View | None:
    artifact = backend.artifacts.get(args["id"])
    return _artifact_view(backend, artifact) if artifact else None


def _client_id_mapping(_root: None, backend: WandbBackend, args: Args) -> View | None:
    artifact = backend.artifacts.by_client_id(args["clientID"])
    return {"serverID": artifact.id} if artifact else None


def _artifact_by_name(project: View, backend: WandbBackend, args: Args) -> View | None:
    artifact = _named(project, backend, args["name"])
    return _artifact_view(backend, artifact) if artifact else None


def _membership_by_name(project: View, backend: WandbBackend, args: Args) -> View | None:
    artifact = _named(project, backend, args["name"])
    return _membership_view(backend, artifact) if artifact else None


def _collection(project: View, backend: WandbBackend, args: Args) -> View | None:
    versions = backend.artifacts.versions(project["entityName"], project["name"], args["name"])
    return _sequence_view(backend, versions[0]) if versions else None


def _artifact_type(project: View, backend: WandbBackend, args: Args) -> View | None:
    artifacts = backend.artifacts.of_project(project["entityName"], project["name"])
    collections = {item.collection: item for item in artifacts if item.type == args["name"]}
    if not collections:
        return None
    edges = [{"node": _sequence_view(backend, artifact)} for artifact in collections.values()]
    return {"name": args["name"], "artifactCollections": {"edges": edges}}


def _versions(sequence: View, backend: WandbBackend) -> list[Artifact]:
    artifact: Artifact = sequence["artifact"]
    return backend.artifacts.versions(artifact.entity, artifact.project, artifact.collection)


def _sequence_artifacts(sequence: View, backend: WandbBackend, _args: Args) -> View:
    return {
        "edges": [{"node": _artifact_view(backend, artifact)} for artifact in _versions(sequence, backend)]
    }


def _latest_artifact(sequence: View, backend: WandbBackend, _args: Args) -> View | None:
    artifact: Artifact = sequence["artifact"]
    latest = backend.artifacts.named(artifact.entity, artifact.project, artifact.collection)
    return _artifact_view(backend, latest) if latest else None


def _sequence_membership(sequence: View, backend: WandbBackend, args: Args) -> View | None:
    artifact: Artifact = sequence["artifact"]
    named = backend.artifacts.named(
        artifact.entity, artifact.project, f"{artifact.collection}:{args['aliasName']}"
    )
    return _membership_view(backend, named) if named else None


def _membership_files(membership: View, backend: WandbBackend, args: Args) -> View:
    return _artifact_files(membership["artifact"], backend, args)


def _artifact_files(view: View, backend: WandbBackend, args: Args) -> View:
    entries: list[Args] = args.get("entries") or []
    names: list[str] = args.get("names") or [entry["name"] for entry in entries]
    files = [file for file in backend.artifacts.files(view["artifact"]) if not names or file.name in names]
    return page([file_view(backend, file) for file in files], args)


def _create_artifact(_root: None, backend: WandbBackend, values: Args) -> View:
    backend.ensure_project(values["entityName"], values["projectName"])
    return {"artifact": _artifact_view(backend, backend.artifacts.create(values))}


def _create_manifest(_root: None, backend: WandbBackend, values: Args) -> View:
    return {"artifactManifest": _manifest_view(backend, backend.artifacts.known(values["artifactID"]))}


def _create_files(_root: None, backend: WandbBackend, values: Args) -> View:
    nodes: list[View] = []
    for spec in values["artifactFiles"]:
        artifact = backend.artifacts.known(spec["artifactID"])
        path = artifact.folder + spec["name"]
        nodes.append(
            {
                "id": make_id("File", path),
                "name": spec["name"],
                "displayName": spec["name"],
                "storagePath": path,
                "uploadUrl": backend.storage.url(path),
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": _artifact_view(backend, artifact),
            }
        )
    return {"files": page(nodes, {"first": len(nodes)})}


def _commit(_root: None, backend: WandbBackend, values: Args) -> View:
    return {"artifact": _artifact_view(backend, backend.artifacts.commit(values["artifactID"]))}


def _use(_root: None, backend: WandbBackend, values: Args) -> View:
    artifact = backend.artifacts.known(values["artifactID"])
    if backend.runs.get(values["entityName"], values["projectName"], values["runName"]) is None:
        raise WandbRefusal(404, f"run {values['runName']} not found")
    return {"artifact": _artifact_view(backend, artifact)}


ARTIFACT_FIELDS: Mapping[str, Resolver] = {
    "Query.artifact": _artifact_by_id,
    "Query.clientIDMapping": _client_id_mapping,
    "Project.artifact": _artifact_by_name,
    "Project.artifactType": _artifact_type,
    "Project.artifactCollection": _collection,
    "Project.artifactCollectionMembership": _membership_by_name,
    "ArtifactSequence.artifacts": _sequence_artifacts,
    "ArtifactSequence.latestArtifact": _latest_artifact,
    "ArtifactSequence.artifactMembership": _sequence_membership,
    "ArtifactCollectionMembership.files": _membership_files,
    "Artifact.files": _artifact_files,
    "Artifact.filesByManifestEntries": _artifact_files,
    "Mutation.createArtifact": _create_artifact,
    "Mutation.createArtifactManifest": _create_manifest,
    "Mutation.createArtifactFiles": _create_files,
    "Mutation.commitArtifact": _commit,
    "Mutation.useArtifact": _use,
}
