"""Artifacts: versions of a named collection, above all the jobs that Launch starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.ids import make_id
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal
from prefect_vertex_launch.sandbox.wandb.storage import Storage, StoredFile
from prefect_vertex_launch.sandbox.wandb.table import Table


class ArtifactState(StrEnum):
    """A version is PENDING until all its files are there and it is committed."""

    PENDING = "PENDING"
    COMMITTED = "COMMITTED"


@dataclass
class Artifact:
    """One version of a collection."""

    id: str
    entity: str
    project: str
    collection: str
    type: str
    version_index: int
    digest: str
    created_at: str
    client_id: str | None = None
    run_name: str | None = None
    description: str | None = None
    metadata: str | None = None
    state: str = ArtifactState.PENDING.value
    aliases: list[str] = field(default_factory=list[str])
    tags: list[str] = field(default_factory=list[str])

    @property
    def key(self) -> str:
        """The id."""
        return self.id

    @property
    def folder(self) -> str:
        """Where its files are in the storage."""
        return f"artifact/{self.id}/files/"

    @property
    def manifest_path(self) -> str:
        """Where its manifest is in the storage."""
        return f"artifact/{self.id}/manifest.json"


class Artifacts:
    """Creates, commits and finds artifact versions."""

    def __init__(self, records: Records, storage: Storage, now: Callable[[], datetime]) -> None:
        self._records = records
        self._storage = storage
        self._now = now
        self._artifacts = Table(records, "artifact", Artifact)

    def create(self, values: Mapping[str, Any]) -> Artifact:
        """Create a version from a CreateArtifactInput.

        The client sends the same version twice, once from Python and once from its Go core, with one
        clientID: the second gets the first one's answer. A committed version with the same digest is
        taken again, as W&B does.

        Raises:
            WandbRefusal: 400 without a collection name.
        """
        names: list[str] = values.get("artifactCollectionNames") or []
        name = names[0] if names else values.get("artifactCollectionName")
        if not name:
            raise WandbRefusal(400, "createArtifact needs the name of a collection")
        versions = self.versions(values["entityName"], values["projectName"], name)
        artifact = self._same(versions, values) or self._new(name, len(versions), values)
        aliases: list[Mapping[str, str]] = values.get("aliases") or []
        self._add_aliases(artifact, [alias["alias"] for alias in aliases])
        self._artifacts.save(artifact)
        return artifact

    def commit(self, artifact_id: str) -> Artifact:
        """Make a version readable.

        Raises:
            WandbRefusal: 404 for an unknown artifact.
        """
        artifact = self.known(artifact_id)
        artifact.state = ArtifactState.COMMITTED.value
        self._add_aliases(artifact, ["latest"])
        self._artifacts.save(artifact)
        return artifact

    def known(self, artifact_id: str) -> Artifact:
        """Return a version by its id.

        Raises:
            WandbRefusal: 404 for an unknown artifact.
        """
        artifact = self._artifacts.get(artifact_id)
        if artifact is None:
            raise WandbRefusal(404, f"artifact {artifact_id} not found")
        return artifact

    def get(self, artifact_id: str) -> Artifact | None:
        """Return a version by its id, or None."""
        return self._artifacts.get(artifact_id)

    def by_client_id(self, client_id: str) -> Artifact | None:
        """Return the version a client knows by its own id, or None."""
        return next((artifact for artifact in self._artifacts if artifact.client_id == client_id), None)

    def versions(self, entity: str, project: str, collection: str) -> list[Artifact]:
        """Return all versions of a collection, oldest first."""
        return [
            artifact for artifact in self.of_project(entity, project) if artifact.collection == collection
        ]

    def of_project(self, entity: str, project: str) -> list[Artifact]:
        """Return all versions of all collections of a project, oldest first."""
        return [
            artifact
            for artifact in self._artifacts
            if (artifact.entity, artifact.project) == (entity, project)
        ]

    def named(self, entity: str, project: str, name: str) -> Artifact | None:
        """Return the committed version that `collection:alias` names (`latest` if not said), or None."""
        collection, _, alias = name.partition(":")
        return next(
            (
                artifact
                for artifact in self.versions(entity, project, collection)
                if artifact.state == ArtifactState.COMMITTED
                and (alias or "latest") in (*artifact.aliases, f"v{artifact.version_index}")
            ),
            None,
        )

    def files(self, artifact: Artifact) -> list[StoredFile]:
        """Return a version's files."""
        return self._storage.listing(artifact.folder)

    def _same(self, versions: list[Artifact], values: Mapping[str, Any]) -> Artifact | None:
        client_id = values.get("clientID")
        for artifact in versions:
            if client_id is not None and artifact.client_id == client_id:
                return artifact
            if artifact.state == ArtifactState.COMMITTED and artifact.digest == values["digest"]:
                return artifact
        return None

    def _new(self, collection: str, version_index: int, values: Mapping[str, Any]) -> Artifact:
        tags: list[Mapping[str, str]] = values.get("tags") or []
        return Artifact(
            id=make_id("Artifact", self._records.next_number("artifact")),
            entity=values["entityName"],
            project=values["projectName"],
            collection=collection,
            type=values["artifactTypeName"],
            version_index=version_index,
            digest=values["digest"],
            created_at=self._now().isoformat(),
            client_id=values.get("clientID"),
            run_name=values.get("runName"),
            description=values.get("description"),
            metadata=values.get("metadata"),
            tags=[tag["tagName"] for tag in tags],
        )

    def _add_aliases(self, artifact: Artifact, aliases: list[str]) -> None:
        artifact.aliases += [alias for alias in aliases if alias not in artifact.aliases]
        if artifact.state == ArtifactState.COMMITTED:
            self._take_aliases(artifact)

    def _take_aliases(self, artifact: Artifact) -> None:
        # An alias names one committed version: the newest to have claimed it.
        for other in self.versions(artifact.entity, artifact.project, artifact.collection):
            if other is not artifact and set(other.aliases) & set(artifact.aliases):
                other.aliases = [alias for alias in other.aliases if alias not in artifact.aliases]
                self._artifacts.save(other)
