"""Whatever comes from a queue becomes a job, always the same one, or a refusal; and no secret shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_vertex_launch.core.errors import InvalidQueueConfig, InvalidRunSpec, Permanent
from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.jobspec.config.arguments import ARGUMENTS
from prefect_vertex_launch.jobspec.config.launch_options import LAUNCH_KEYS, CommandPools
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig, QueueDefaults, parse_queue_config
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.overrides import Overrides
from prefect_vertex_launch.jobspec.render import Rendering, render
from prefect_vertex_launch.jobspec.run_spec import RunSpec, parse_run_spec
from tests.json_fuzz import anything, leaf_places, macros, mild, mutated
from tests.unit import full_items
from tests.unit.sdk_job import CONTEXT, IMAGE, LOCATION, PROJECT, assert_equal, extras, runs, specs, tracking

API_KEY, TOKEN = "c4nary-api-key-of-forty-characters-00000", "C4NARY token $(x) of the worker"
fuzz = settings(max_examples=100)

FUZZED = LaunchContext(
    item_id="item-1", queue=QueueIdentity("api.wandb.ai", "acme", "vertex"), run_id="run1", image_uri=IMAGE,
    base_url="https://api.wandb.ai", api_key=SecretStr(API_KEY), project=PROJECT, location=LOCATION,
    macros={"A_TOKEN": TOKEN, "NUMBER": "4", "UNSET": None},
    job_entry_point=("python", "t.py"),
)  # fmt: skip
RUN = RunSpec(
    "acme", "p", "${run_id} $(HOME)", None, "me", "vertex", None, IMAGE, None,
    Overrides(args=("--a", "${A_TOKEN}"), run_config={"a": "$(WANDB_API_KEY)"}),
)  # fmt: skip
RUN_SPEC: dict[str, Any] = {
    "entity": "acme", "project": "p", "docker": {"docker_image": IMAGE}, "name": "n", "run_id": "r1",
    "author": "me", "sweep_id": "s", "_resume_count": 1, "priority": 2, "git": {}, "resource": "gcp-vertex",
    "overrides": {
        "args": ["a", 1], "entry_point": ["e"], "run_config": {"lr": 0.1}, "files": {},
        "artifacts": {"d": "d:v1"},
    },
}  # fmt: skip
RUN_SPEC_KEYS = [*RUN_SPEC, "job", "image_uri", "uri", "resource_args", "builder", "template_variables"]

machines = st.sampled_from([
    {"machine_type": "n1-standard-8"}, {"machine_type": "z1-standard-1"},
    {"machine_type": "g2-standard-8", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1},
])  # fmt: skip
fallbacks = st.fixed_dictionaries(
    {"location": st.sampled_from(["us-east1", "europe-west4"])},
    optional={
        "machine_spec": machines,
        "spec": st.just({"labels": {"try": "2"}}),
        "run": st.sampled_from([{"scheduling_strategy": "STANDARD"}, {"timeout": 77}]),
    },
)
launches = st.fixed_dictionaries(
    {},
    optional={
        "command_pools": st.sampled_from(["image", "all", [0]]),
        "run_id_replicas": st.sampled_from(["primary", "all"]),
        "fallbacks": st.lists(fallbacks, max_size=2),
    },
)
configurations = st.fixed_dictionaries(
    {"spec": specs, "run": st.tuples(runs, tracking).map(lambda parts: {**parts[0], **parts[1]})},
    optional={"launch": launches},
)


sdk_configurations = st.tuples(specs, runs, tracking, extras).map(
    lambda parts: {"spec": parts[0], "run": {**parts[1], **parts[2], **parts[3][1]}}
)
GOOD: dict[str, Any] = {
    "spec": {
        "worker_pool_specs": [
            {
                "machine_spec": {"machine_type": "n1-standard-4"},
                "replica_count": 1,
                "container_spec": {
                    "image_uri": "${image_uri}",
                    "env": [{"name": "A", "value": "${run_name}"}],
                },
            }
        ],
        "staging_bucket": "gs://bucket-1",
    },
}
# Texts in every place that takes some.
RICH: dict[str, Any] = {
    "spec": {
        "worker_pool_specs": [
            {
                "machine_spec": {"machine_type": "z1-standard-4"},
                "replica_count": 1,
                "container_spec": {
                    "image_uri": "${image_uri}", "command": ["sh", "-c"], "args": ["a", "b", "c"],
                    "env": [{"name": "A", "value": "1"}, {"name": "A_SECRET", "value": "2"}],
                },
                "disk_spec": {"boot_disk_type": "pd-ssd", "boot_disk_size_gb": 100},
                "nfs_mounts": [{"server": "10.0.0.1", "path": "/x", "mount_point": "m"}],
            }
        ],
        "staging_bucket": "gs://bucket-1", "display_name": "d", "labels": {"a": "b", "c": "d"},
    },
    "run": {
        "network": "projects/1/global/networks/n", "timeout": 60, "reserved_ip_ranges": ["r"],
        "psc_interface_config": {"network_attachment": "projects/p/regions/r/networkAttachments/a"},
    },
}  # fmt: skip


def outcome(function: Callable[[], Any], refusal: type[Permanent]) -> Any:
    """Return what the function gives; a refusal has been looked at and is given back as its error."""
    try:
        return function()
    except refusal as error:
        found = error
    assert found.problems
    assert all(problem.where and problem.what for problem in found.problems)
    str(found).encode()  # it can be sent to W&B and shown in the Prefect UI
    assert_no_secret(str(found) + repr(found))
    return found


def assert_no_secret(text: str) -> None:
    assert "c4nary" not in text.lower()


def job_bytes(rendering: Rendering) -> bytes:
    return CustomJob.pb(rendering.job).SerializeToString(deterministic=True)


def as_written(config: QueueConfig) -> dict[str, Any]:
    """Return a checked configuration as a person would write it, its fallbacks apart."""
    pools = config.launch.command_pools
    written = pools.value if isinstance(pools, CommandPools) else list(pools)
    launch = {"command_pools": written, "run_id_replicas": config.launch.run_id_replicas.value}
    return {"spec": config.spec, "run": config.run, "launch": launch}


def assert_keeps_the_key(rendering: Rendering) -> None:
    """The key is the value of one variable, and nowhere else; people see neither it nor the token."""
    job = json_format.MessageToDict(CustomJob.pb(rendering.job), preserving_proto_field_name=True)
    for pool in job["job_spec"]["worker_pool_specs"]:
        task = pool.get("container_spec") or pool.get("python_package_spec") or {}
        for variable in task.get("env", ()):
            if variable.get("name") == "WANDB_API_KEY":
                variable.pop("value", None)
    assert API_KEY not in json.dumps(job)
    assert_no_secret("".join(rendering.warnings) + repr(rendering))
    seen = json.dumps(rendering.redacted())
    assert_no_secret(seen)
    seen.encode()


def examine_plan(run_spec: RunSpec, plan: QueueConfig, context: LaunchContext) -> bool:
    """Render a plan twice, and once more from what was understood of it; tell whether it becomes a job."""
    first = outcome(lambda: render(run_spec, plan, context), InvalidQueueConfig)
    second = outcome(lambda: render(run_spec, plan, context), InvalidQueueConfig)
    again = parse_queue_config(as_written(plan))
    assert (again.spec, again.run) == (plan.spec, plan.run)
    if isinstance(first, InvalidQueueConfig):
        assert str(first) == str(second)
        return False
    assert (job_bytes(first), first.warnings) == (job_bytes(second), second.warnings)
    assert job_bytes(render(run_spec, again, context)) == job_bytes(first)
    assert_keeps_the_key(first)
    return True


def examine(resource_args: Any, defaults: QueueDefaults | None = None, run_spec: RunSpec = RUN) -> bool:
    """Parse, and render each plan of what can be parsed; tell whether every one becomes a job."""
    found = outcome(lambda: parse_queue_config(resource_args, defaults=defaults), InvalidQueueConfig)
    if not isinstance(found, QueueConfig):
        return False
    assert_no_secret("".join(found.warnings) + repr(found))
    contexts = [
        dataclasses.replace(FUZZED, location=found.location_of(index) or FUZZED.location)
        for index in range(1 + len(found.launch.fallbacks))
    ]
    rendered = [examine_plan(run_spec, found.plan(index), context) for index, context in enumerate(contexts)]
    return all(rendered)


@fuzz
@given(
    anything
    | st.dictionaries(st.sampled_from(RUN_SPEC_KEYS), anything, max_size=6)
    | mutated(st.just(RUN_SPEC))
)
def test_any_run_spec(payload: Any) -> None:
    found = outcome(lambda: parse_run_spec(payload, item_id="item-1"), InvalidRunSpec)
    if isinstance(found, RunSpec):
        examine(GOOD, run_spec=found)


@fuzz
@given(
    anything | st.dictionaries(st.sampled_from(["spec", "run", "launch", "builder"]), anything, max_size=3)
)
def test_any_queue_configuration(config: Any) -> None:
    examine(config)


@settings(fuzz, max_examples=60)
@given(configurations)
def test_a_good_configuration_is_rendered(config: Any) -> None:
    assert examine(config)


@settings(fuzz, max_examples=130)
@given(mutated(configurations))
def test_a_good_configuration_with_something_wrong_in_it(config: Any) -> None:
    examine(config)


@fuzz
@given(mutated(st.just(RICH), macros, ("replace",), leaf_places))
def test_macros_anywhere_in_a_good_configuration(config: Any) -> None:
    examine(config)


def smaller_item(shape: str) -> Any:
    """Return one of the items that are full of one thing, at a small part of its size."""
    with patch.object(full_items, "FULL", full_items.FULL // 200):
        return full_items.SHAPES[shape]()


@settings(fuzz, max_examples=60)
@given(
    mutated(st.sampled_from(sorted(full_items.SHAPES)).map(smaller_item))
    | st.sampled_from(sorted(full_items.SHAPES)).map(smaller_item)
)
def test_items_that_are_full_of_one_thing(payload: Any) -> None:
    found = outcome(lambda: parse_run_spec(payload, item_id="item-1"), InvalidRunSpec)
    if isinstance(found, RunSpec):
        examine(found.resource_args, run_spec=found)


NAMES = [(section, name) for section, arguments in ARGUMENTS.items() for name in arguments]
NAMES += [("launch", name) for name in LAUNCH_KEYS]


@settings(fuzz, max_examples=200)
@given(st.sampled_from(NAMES), anything)
def test_one_strange_argument_in_a_good_configuration(place: tuple[str, str], value: Any) -> None:
    section, name = place
    examine({**GOOD, section: {**GOOD.get(section, {}), name: value}})


@fuzz
@given(mutated(configurations) | st.fixed_dictionaries(dict.fromkeys(("spec", "run", "launch"), anything)))
def test_any_defaults_of_a_block(block: Any) -> None:
    sections = {
        name: values
        if isinstance(values := block.get(name) if isinstance(block, dict) else None, dict)
        else {}
        for name in ("spec", "run", "launch")
    }
    examine({}, QueueDefaults(**sections, staging_bucket="gs://bucket-1"))


@settings(fuzz, max_examples=150)
@given(mutated(sdk_configurations, mild, ("replace", "remove"), leaf_places))
def test_what_is_taken_agrees_with_the_sdk(config: Any) -> None:
    def taken() -> bool:
        return isinstance(config, dict) and render(RUN, parse_queue_config(config), CONTEXT) is not None

    if outcome(taken, InvalidQueueConfig) is True:
        assert_equal(config.get("spec") or {}, config.get("run") or {}, [])
