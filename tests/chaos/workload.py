"""What the items of a queue are: quick programs for the most part, a few real runs, some that fail."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from prefect_vertex_launch.core.identity import QueueIdentity
from tests.chaos.auditor import Expected
from tests.chaos.servers import ENTITY, SandboxProcess

PUSH = """
mutation pushToRunQueueByName($entityName: String!, $projectName: String!, $queueName: String!,
                              $runSpec: JSONString!) {
  pushToRunQueueByName(input: {entityName: $entityName, projectName: $projectName, queueName: $queueName,
                               runSpec: $runSpec}) {
    runQueueItemId
  }
}"""
RUN_PROJECT = "runs"
ITEM_STATES = """
query States($projectName: String!, $entityName: String!, $queueName: String!, $count: Int!) {
  project(name: $projectName, entityName: $entityName) {
    runQueue(name: $queueName) {
      runQueueItems(first: $count) { edges { node { id state associatedRunId } } }
    }
  }
}"""


@dataclass(frozen=True)
class Kind:
    """One kind of item: its image and arguments, how it is to end, and how often it is drawn."""

    image: str | None
    arguments: tuple[str, ...]
    expected: Expected
    weight: int
    name: str = "run"


SUCCEEDED = Expected("CLAIMED", "JOB_STATE_SUCCEEDED", "COMPLETED")
CANCELLED = Expected("FAILED", "JOB_STATE_CANCELLED", "CANCELLED", "Category: cancelled (")
# It ends by what is done to it.
LASTING = ("0", "600")
KINDS = {
    "succeeds": Kind("chaos/run", ("{seconds}",), SUCCEEDED, 60),
    "real run": Kind("sandbox/train", (), SUCCEEDED, 0),
    "fails": Kind(
        "chaos/shell",
        ("sleep {seconds}; exit 3",),
        Expected("FAILED", "JOB_STATE_FAILED", "FAILED", "non-zero status of 3"),
        20,
    ),
    "no run": Kind(
        "chaos/shell",
        ("sleep {seconds}",),
        Expected("FAILED", "JOB_STATE_SUCCEEDED", "FAILED", "wandb.init"),
        10,
    ),
    # What people and machines do to a launch that is under way (`interventions`).
    "stopped": Kind("chaos/run", LASTING, CANCELLED, 0),
    "cancelled": Kind("chaos/run", LASTING, CANCELLED, 0),
    "preempted": Kind(
        "chaos/run",
        LASTING,
        Expected("CLAIMED", "JOB_STATE_SUCCEEDED", "COMPLETED", earlier=("JOB_STATE_FAILED",)),
        0,
    ),
    "over quota": Kind("chaos/run", ("{seconds}",), SUCCEEDED, 0, name="over-quota"),
    "refused": Kind(None, (), Expected("FAILED", None, "FAILED"), 10),
}


@dataclass
class Workload:
    """The items of one queue; `random` draws their kinds, `job_seconds` bounds how long their jobs run."""

    sandbox: SandboxProcess
    identity: QueueIdentity
    random: Random
    job_seconds: float
    expected: dict[str, Expected] = field(default_factory=dict[str, Expected])
    kinds: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def keys(self) -> dict[str, str]:
        """The label of each item's jobs."""
        return {item_id: self.identity.item_key(item_id) for item_id in self.expected}

    async def push(self, count: int, kind: str | None = None) -> None:
        for _ in range(count):
            weights = [each.weight for each in KINDS.values()]
            name = kind or self.random.choices([*KINDS], weights)[0]
            chosen = KINDS[name]
            data = await self.sandbox.ask(
                PUSH,
                entityName=ENTITY,
                projectName="model-registry",
                queueName=self.identity.queue,
                runSpec=json.dumps(self._run_spec(chosen)),
            )
            item_id = data["pushToRunQueueByName"]["runQueueItemId"]
            self.expected[item_id], self.kinds[item_id] = chosen.expected, name

    async def states(self) -> dict[str, str]:
        """Return the state that each item has at W&B."""
        return {node["id"]: node["state"] for node in await self._nodes()}

    async def run_ids(self) -> dict[str, str | None]:
        """Return the run that each item was claimed for."""
        return {node["id"]: node["associatedRunId"] for node in await self._nodes()}

    async def _nodes(self) -> list[dict[str, Any]]:
        data = await self.sandbox.ask(
            ITEM_STATES,
            entityName=ENTITY,
            projectName="model-registry",
            queueName=self.identity.queue,
            count=len(self.expected),
        )
        edges = data["project"]["runQueue"]["runQueueItems"]["edges"]
        return [edge["node"] for edge in edges]

    def _run_spec(self, kind: Kind) -> dict[str, Any]:
        seconds = f"{self.random.uniform(0, self.job_seconds):.2f}"
        spec: dict[str, Any] = {
            "entity": ENTITY,
            "project": RUN_PROJECT,
            "name": f"{kind.name}-{len(self.expected) + 1}",
            "resource": "gcp-vertex",
            "overrides": {"args": [argument.format(seconds=seconds) for argument in kind.arguments]},
        }
        # Without an image nothing can be launched: such an item is refused.
        return spec if kind.image is None else {**spec, "docker": {"docker_image": kind.image}}
