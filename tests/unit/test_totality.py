"""Any JSON at all, and some that is hardly JSON, gives a value or the error that names its problems."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from vertex_launch.arguments import RUN_ARGUMENTS, SPEC_ARGUMENTS
from vertex_launch.errors import InvalidQueueConfig, InvalidRunSpec, Permanent
from vertex_launch.queue_config import QueueConfig, QueueDefaults, parse_queue_config
from vertex_launch.render import LaunchContext, Rendering, render
from vertex_launch.run_spec import Overrides, RunSpec, parse_run_spec

RUN_SPEC_KEYS = [
    "entity", "project", "docker", "image_uri", "job", "resource", "resource_args", "overrides", "git", "uri",
    "name", "run_id", "author", "sweep_id", "_resume_count", "builder", "template_variables", "priority",
]  # fmt: skip
POOL_KEYS = [
    "container_spec", "python_package_spec", "machine_spec", "replica_count", "nfs_mounts", "lustre_mounts",
    "disk_spec", "image_uri", "command", "args", "env", "name", "value", "machine_type", "accelerator_type",
    "accelerator_count", "reservation_affinity", "boot_disk_size_gb", "machineType", "path",
]  # fmt: skip
VALUES = [
    "${image_uri}",
    "${run_id}",
    "gs://bucket-1",
    "n1-standard-4",
    "a2-highgpu-1g",
    "NVIDIA_TESLA_A100",
    "SPOT",
]

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(VALUES)
    | st.text(st.characters())
    | st.just(1 << 14_000)
)
keys = st.sampled_from(POOL_KEYS) | st.text(st.characters(), max_size=8)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def outcome(function: Callable[[], Any], refusal: type[Permanent]) -> Any:
    """Return what the function gives; a refusal has been looked at and is given back as its error."""
    try:
        return function()
    except refusal as error:
        found = error
    assert found.problems
    assert all(problem.where and problem.what for problem in found.problems)
    str(found).encode()  # it can be sent to W&B and shown in the Prefect UI
    return found


@settings(max_examples=120, deadline=None)
@given(anything | st.dictionaries(st.sampled_from(RUN_SPEC_KEYS), anything, max_size=6))
def test_any_run_spec(payload: Any) -> None:
    found = outcome(lambda: parse_run_spec(payload, item_id="item-1"), InvalidRunSpec)
    assert isinstance(found, RunSpec | InvalidRunSpec)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(RUN_SPEC_KEYS), anything)
def test_one_strange_value_in_a_good_run_spec(key: str, value: Any) -> None:
    payload = {"entity": "e", "project": "p", "docker": {"docker_image": "img"}, key: value}
    outcome(lambda: parse_run_spec(payload, item_id="item-1"), InvalidRunSpec)


GOOD: dict[str, Any] = {
    "spec": {
        "worker_pool_specs": [
            {
                "machine_spec": {"machine_type": "n1-standard-4"},
                "replica_count": 1,
                "container_spec": {"image_uri": "${image_uri}", "env": [{"name": "A", "value": "1"}]},
            }
        ],
        "staging_bucket": "gs://bucket-1",
    },
    "run": {},
}
CONTEXT = LaunchContext(
    item_id="i", queue_entity="e", queue_name="q", run_id="r", image_uri="img", base_url="http://w",
    api_key=SecretStr("k" * 40), project="p", location="us-central1",
)  # fmt: skip
RUN = RunSpec("e", "p", None, None, None, "vertex", None, "img", None, Overrides())


def check(config: Any) -> None:
    """Parse, and render what can be parsed."""
    found = outcome(lambda: parse_queue_config(config), InvalidQueueConfig)
    if isinstance(found, QueueConfig):
        assert isinstance(
            outcome(lambda: render(RUN, found, CONTEXT), InvalidQueueConfig), Rendering | InvalidQueueConfig
        )


@settings(max_examples=120, deadline=None)
@given(anything | st.dictionaries(st.sampled_from(["spec", "run", "builder"]), anything, max_size=3))
def test_any_queue_configuration(config: Any) -> None:
    check(config)


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from([("spec", name) for name in SPEC_ARGUMENTS] + [("run", name) for name in RUN_ARGUMENTS]),
    anything,
)
def test_one_strange_argument_in_a_good_configuration(place: tuple[str, str], value: Any) -> None:
    section, name = place
    check({**GOOD, section: {**GOOD[section], name: value}})


POOL_PATHS: list[tuple[Any, ...]] = [
    ("machine_spec",), ("replica_count",), ("container_spec",), ("container_spec", "image_uri"),
    ("container_spec", "env"), ("container_spec", "env", 0), ("container_spec", "env", 0, "name"),
    ("container_spec", "command"), ("container_spec", "args"), ("machine_spec", "machine_type"),
    ("machine_spec", "accelerator_type"), ("machine_spec", "accelerator_count"),
    ("machine_spec", "reservation_affinity"), ("disk_spec",), ("nfs_mounts",), ("python_package_spec",),
]  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(POOL_PATHS), anything)
def test_one_strange_value_in_a_good_pool(path: tuple[Any, ...], value: Any) -> None:
    config = copy.deepcopy(GOOD)
    place: Any = config["spec"]["worker_pool_specs"][0]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    check(config)


@settings(max_examples=60, deadline=None)
@given(anything, anything)
def test_any_defaults_of_a_block(spec: Any, run: Any) -> None:
    defaults = QueueDefaults(
        spec=spec if isinstance(spec, dict) else {}, run=run if isinstance(run, dict) else {}
    )
    outcome(lambda: parse_queue_config(GOOD, defaults=defaults), InvalidQueueConfig)
