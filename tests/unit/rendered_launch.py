"""A launch through parsing and rendering, with one pool and one run unless a test says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from prefect_vertex_launch.core.errors import InvalidQueueConfig
from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.render import Rendering, render
from prefect_vertex_launch.jobspec.run_spec import RunSpec, parse_run_spec

IMAGE = "us-docker.pkg.dev/p/r/train:1"
KEY = "0123456789abcdef" * 3
POOL = "resource_args.vertex.spec.worker_pool_specs[0]"


def pool(image: str = "${image_uri}", *, count: Any = 1, **task: Any) -> dict[str, Any]:
    return {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": count,
        "container_spec": {"image_uri": image, **task},
    }


def read_run_spec(**changes: Any) -> RunSpec:
    payload = {"entity": "acme", "project": "P1", "docker": {"docker_image": IMAGE}, **changes}
    return parse_run_spec(payload, item_id="item-1")


def launch_context(**changes: Any) -> LaunchContext:
    given = {
        "item_id": "item-1", "queue": QueueIdentity("api.wandb.ai", "acme", "gpu"), "run_id": "run1",
        "image_uri": IMAGE, "base_url": "https://api.wandb.ai", "api_key": SecretStr(KEY),
        "project": "my-project", "location": "us-central1",
    }  # fmt: skip
    return LaunchContext(**{**given, **changes})


def launch(
    *pools: dict[str, Any],
    spec: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    item: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **context: Any,
) -> Rendering:
    arguments = {
        "worker_pool_specs": list(pools) or [pool()],
        "staging_bucket": "gs://my-bucket",
        **(spec or {}),
    }
    config = parse_queue_config({"spec": arguments, "run": run or {}, "launch": options})
    return render(read_run_spec(**(item or {})), config, launch_context(**context))


def refused(*pools: dict[str, Any], **launched: Any) -> dict[str, str]:
    with pytest.raises(InvalidQueueConfig) as caught:
        launch(*pools, **launched)
    return {problem.where: str(problem) for problem in caught.value.problems}


def task_of(rendering: Rendering, index: int = 0) -> Any:
    return rendering.job.job_spec.worker_pool_specs[index].container_spec


def env_of(rendering: Rendering, index: int = 0) -> dict[str, str]:
    return {variable.name: variable.value for variable in task_of(rendering, index).env}
