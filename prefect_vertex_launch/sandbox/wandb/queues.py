"""Run queues and the resource configs that hang on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.ids import make_id
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal, parse_json_object
from prefect_vertex_launch.sandbox.wandb.table import Table
from prefect_vertex_launch.sandbox.wandb.templates import schema_problems

LAUNCH_PROJECT = "model-registry"
_NAME_LENGTH = 64


@dataclass
class ResourceConfig:
    """What a queue adds to items that bring no resource_args of their own."""

    id: str
    entity: str
    resource: str
    config: dict[str, Any]
    variables: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def key(self) -> str:
        """The id."""
        return self.id


@dataclass
class RunQueue:
    """A named queue of a project; Launch keeps all of an entity's queues in `model-registry`."""

    id: str
    entity: str
    project: str
    name: str
    created_at: str
    created_by: str
    access: str = "PROJECT"
    prioritization_mode: str | None = None
    resource_config_id: str | None = None
    external_links: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """The id."""
        return self.id

    @property
    def by_priority(self) -> bool:
        """Whether items carry a priority that orders them."""
        return self.prioritization_mode == "V0"


class Queues:
    """Creates, finds and deletes run queues."""

    def __init__(self, records: Records, now: Callable[[], datetime]) -> None:
        self._records = records
        self._now = now
        self._queues = Table(records, "run-queue", RunQueue)
        self._configs = Table(records, "resource-config", ResourceConfig)

    def all(self) -> list[RunQueue]:
        """Return every queue, oldest first."""
        return list(self._queues)

    def of_project(self, entity: str, project: str) -> list[RunQueue]:
        """Return a project's queues, oldest first."""
        return [queue for queue in self._queues if (queue.entity, queue.project) == (entity, project)]

    def named(self, entity: str, project: str, name: str) -> RunQueue | None:
        """Return one queue, or None."""
        return next((queue for queue in self.of_project(entity, project) if queue.name == name), None)

    def get(self, queue_id: str | None) -> RunQueue | None:
        """Return the queue with this id, or None."""
        return self._queues.get(queue_id)

    def config(self, config_id: str | None) -> ResourceConfig | None:
        """Return the resource config with this id, or None."""
        return self._configs.get(config_id)

    def create_config(self, entity: str, resource: str, config: str, variables: str | None) -> ResourceConfig:
        """Keep a resource config; `config` and `variables` are JSON.

        Raises:
            WandbRefusal: 400, if one of them is not a JSON object or a variable's schema is wrong.
        """
        parsed = parse_json_object(variables, what="templateVariables") if variables else {}
        if problems := schema_problems(parsed):
            raise WandbRefusal(400, "; ".join(problems))
        row = ResourceConfig(
            id=make_id("DefaultResourceConfig", self._records.next_number("resource-config")),
            entity=entity,
            resource=resource,
            config=parse_json_object(config, what="config"),
            variables=parsed,
        )
        self._configs.save(row)
        return row

    def create(
        self,
        entity: str,
        project: str,
        name: str,
        *,
        created_by: str,
        access: str = "PROJECT",
        prioritization_mode: str | None = None,
        resource_config_id: str | None = None,
    ) -> RunQueue:
        """Create a queue.

        Raises:
            WandbRefusal: 400 for a bad name or an unknown resource config, 409 if the name is taken.
        """
        if not 1 <= len(name) <= _NAME_LENGTH:
            raise WandbRefusal(400, f"run queue name must have 1 to {_NAME_LENGTH} characters")
        if self.named(entity, project, name):
            raise WandbRefusal(409, f"run queue {name} already exists in {entity}/{project}")
        if resource_config_id is not None and self.config(resource_config_id) is None:
            raise WandbRefusal(400, f"default resource config {resource_config_id} does not exist")
        queue = RunQueue(
            id=make_id("RunQueue", self._records.next_number("run-queue")),
            entity=entity,
            project=project,
            name=name,
            created_at=self._now().isoformat(),
            created_by=created_by,
            access=access,
            prioritization_mode=prioritization_mode,
            resource_config_id=resource_config_id,
        )
        self._queues.save(queue)
        return queue

    def upsert(
        self,
        entity: str,
        project: str,
        name: str,
        *,
        created_by: str,
        resource: str,
        config: str,
        variables: str | None,
        prioritization_mode: str | None,
        external_links: str | None,
    ) -> RunQueue:
        """Create a queue or replace its resource config, priorities and links; the items stay.

        Raises:
            WandbRefusal: 400, if the config, the variables or the links are not as W&B wants them.
        """
        links = parse_json_object(external_links, what="externalLinks") if external_links else None
        resource_config = self.create_config(entity, resource, config, variables)
        queue = self.named(entity, project, name) or self.create(entity, project, name, created_by=created_by)
        queue.resource_config_id = resource_config.id
        queue.prioritization_mode = prioritization_mode
        queue.external_links = links
        self._queues.save(queue)
        return queue

    def delete(self, queue: RunQueue) -> None:
        """Remove a queue."""
        self._queues.delete(queue)


def template_variable_views(config: ResourceConfig) -> list[dict[str, Any]]:
    """Return a config's template variables as W&B answers them, each schema as JSON text."""
    return [
        {
            "name": name,
            "description": variable.get("description"),
            "schema": json.dumps(variable["schema"]),
        }
        for name, variable in config.variables.items()
    ]
