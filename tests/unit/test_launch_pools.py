"""Which pools run the launch, and which replica of theirs is the W&B run."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from prefect_vertex_launch.jobspec.environment import launch_environment
from prefect_vertex_launch.jobspec.render import Rendering, render
from tests.unit.rendered_launch import (
    IMAGE,
    POOL,
    env_of,
    launch,
    launch_context,
    pool,
    read_run_spec,
    task_of,
)

REDUCTION = "us-docker.pkg.dev/p/r/reduction:1"
OF_THE_RUN = {"WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_LAUNCH_TRACE_ID"}
PACKAGE = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 2,
    "python_package_spec": {
        "executor_image_uri": "us-docker.pkg.dev/vertex-ai/training/tf:1",
        "package_uris": ["gs://b/p.tar.gz"],
        "python_module": "m",
    },
}
# Everything that is different for the run: a sweep's trial that is taken up again.
TRIAL = {"sweep_id": "s1", "_resume_count": 1, "overrides": {"args": ["x"], "entry_point": ["y"]}}


def variables(rendering: Rendering, index: int) -> dict[str, str]:
    pool = rendering.job.job_spec.worker_pool_specs[index]
    task: Any = pool.container_spec if pool.container_spec.image_uri else pool.python_package_spec
    return {variable.name: variable.value for variable in task.env}


@pytest.mark.parametrize(
    ("command_pools", "launched"),
    [(None, [0, 2]), ("image", [0, 2]), ("all", [0, 2, 3]), ([0], [0]), ([2, 3], [2, 3])],
)
def test_the_pools_that_are_meant_get_command_arguments_and_variables(
    command_pools: Any, launched: list[int]
) -> None:
    pools = (pool(), {}, pool(IMAGE, count=1), pool(REDUCTION, command=["reduce"], args=["-v"]))
    rendering = launch(*pools, item=TRIAL, options={"command_pools": command_pools})
    assert [index for index in range(4) if env_of(rendering, index)] == launched
    for index in (0, 2, 3):
        run_it = ["y"], ["x"]
        as_written = (["reduce"], ["-v"]) if index == 3 else ([], [])
        task = task_of(rendering, index)
        assert (list(task.command), list(task.args)) == (run_it if index in launched else as_written)
    assert task_of(rendering, 3).image_uri == REDUCTION
    assert not rendering.job.job_spec.worker_pool_specs[1]


def test_a_pool_of_packages_gets_arguments_and_variables_but_no_command() -> None:
    rendering = launch(pool(), PACKAGE, item=TRIAL, options={"command_pools": "all"})
    package = rendering.job.job_spec.worker_pool_specs[1].python_package_spec
    assert list(package.args) == ["x"]
    assert variables(rendering, 1)["WANDB_RUN_GROUP"] == "run1"
    assert [warning for warning in rendering.warnings if "no command" in warning]
    assert not variables(launch(pool(), PACKAGE, item=TRIAL), 1)


def test_one_pool_is_the_run_and_the_others_are_grouped_with_it() -> None:
    rendering = launch(pool(), pool(count=3), {}, pool(), item=TRIAL)
    run = launch_environment(read_run_spec(**TRIAL), launch_context())
    assert variables(rendering, 0) == run
    assert run.keys() >= OF_THE_RUN
    for index in (1, 3):
        beside = {name: value for name, value in run.items() if name not in OF_THE_RUN}
        assert variables(rendering, index) == {**beside, "WANDB_RUN_GROUP": "run1"}
    assert rendering.warnings == ()


def test_every_replica_is_the_run_if_the_queue_wants_it_so() -> None:
    rendering = launch(pool(), pool(count=3), item=TRIAL, options={"run_id_replicas": "all"})
    run = launch_environment(read_run_spec(**TRIAL), launch_context())
    assert variables(rendering, 0) == variables(rendering, 1) == run
    assert rendering.warnings == ()


@pytest.mark.parametrize("count", [1, 4])
def test_without_the_primary_pool_the_next_one_is_the_run(count: int) -> None:
    rendering = launch(pool(REDUCTION), pool(count=count), pool())
    assert not variables(rendering, 0)
    assert variables(rendering, 1)["WANDB_RUN_ID"] == "run1"
    assert "WANDB_RUN_ID" not in variables(rendering, 2)
    path = POOL.replace("[0]", "[1]")
    expected = [f"{path}.replica_count: 4 replicas share one environment"] if count > 1 else []
    assert [warning.partition(" and so")[0] for warning in rendering.warnings] == expected


def test_a_group_of_the_queues_own_stays() -> None:
    own = [{"name": "WANDB_RUN_GROUP", "value": "mine"}]
    rendering = launch(pool(env=own), pool(env=own))
    assert variables(rendering, 0)["WANDB_RUN_GROUP"] == "mine"
    assert variables(rendering, 1)["WANDB_RUN_GROUP"] == "mine"
    assert rendering.warnings == ()


@pytest.mark.parametrize(
    ("run", "resumes"),
    [
        ({}, False),
        ({"scheduling_strategy": "STANDARD"}, False),
        ({"scheduling_strategy": "FLEX_START"}, False),
        ({"scheduling_strategy": "SPOT"}, True),
        ({"scheduling_strategy": 4}, True),
        ({"scheduling_strategy": "${strategy}"}, True),
        ({"restart_job_on_worker_restart": True}, True),
        ({"restart_job_on_worker_restart": False}, False),
        ({"scheduling_strategy": "SPOT", "disable_retries": False}, True),
        ({"scheduling_strategy": "SPOT", "disable_retries": True}, False),
        ({"restart_job_on_worker_restart": True, "disable_retries": True}, False),
    ],
)
def test_a_run_can_be_taken_up_where_vertex_ai_may_start_it_again(run: dict[str, Any], resumes: bool) -> None:
    rendering = launch(run=run, macros={"strategy": "SPOT"})
    assert (env_of(rendering).get("WANDB_RESUME") == "allow") is resumes


def test_a_fallback_is_rendered_as_if_it_had_been_written() -> None:
    gpu = {"machine_type": "g2-standard-8", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1}
    spec = {"worker_pool_specs": [pool()], "staging_bucket": "gs://my-bucket", "location": "us-central1"}
    first = {"location": "us-east1", "machine_spec": gpu, "run": {"scheduling_strategy": None}}
    config = parse_queue_config(
        {"spec": spec, "run": {"scheduling_strategy": "SPOT"}, "launch": {"fallbacks": [first]}}
    )
    context = launch_context(location=config.location_of(1))
    rendering = render(read_run_spec(), config.plan(1), context)
    written = {**spec, "location": "us-east1", "worker_pool_specs": [{**pool(), "machine_spec": gpu}]}
    same = render(read_run_spec(), parse_queue_config({"spec": written}), context)
    assert rendering.parent == "projects/my-project/locations/us-east1"
    assert rendering.job == same.job
    assert "WANDB_RESUME" not in env_of(rendering)
    assert env_of(render(read_run_spec(), config.plan(0), launch_context()))["WANDB_RESUME"] == "allow"
