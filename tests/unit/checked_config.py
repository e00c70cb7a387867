"""A queue's configuration through parsing, and the problems of a wrong one by their paths."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from prefect_vertex_launch.core.errors import InvalidQueueConfig, Problem
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig, QueueDefaults, parse_queue_config

POOL: dict[str, Any] = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 1,
    "container_spec": {"image_uri": "${image_uri}"},
}
SPEC: dict[str, Any] = {"worker_pool_specs": [POOL], "staging_bucket": "gs://my-bucket"}
NETWORK = "projects/123/global/networks/my-vpc"
ACCOUNT = "trainer@my-project.iam.gserviceaccount.com"
POOLS = "resource_args.vertex.spec.worker_pool_specs"


def parse(spec: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> QueueConfig:
    return parse_queue_config({"spec": {**SPEC, **(spec or {})}, "run": run or {}})


def problems(config: object, defaults: QueueDefaults | None = None) -> dict[str, Problem]:
    with pytest.raises(InvalidQueueConfig) as caught:
        parse_queue_config(config, defaults=defaults)
    assert all(problem.fix for problem in caught.value.problems)
    return {problem.where: problem for problem in caught.value.problems}


def refused(spec: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> dict[str, Problem]:
    return problems({"spec": {**SPEC, **(spec or {})}, "run": run or {}})


def only(found: dict[str, Problem], where: str) -> str:
    assert list(found) == [where]
    return str(found[where])


def pool(**changes: Any) -> dict[str, Any]:
    changed = {**copy.deepcopy(POOL), **changes}
    return {"worker_pool_specs": [{key: value for key, value in changed.items() if value is not ...}]}


def container(**fields: Any) -> dict[str, Any]:
    return pool(container_spec={"image_uri": "img", **fields})


def machine(machine_type: str, **fields: Any) -> dict[str, Any]:
    return pool(machine_spec={"machine_type": machine_type, **fields})
