"""The rendered job is, field by field, what the SDK's own CustomJob would send for the same arguments."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from google.cloud import aiplatform
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_vertex_launch.core.vertex_types import AcceleratorType, CustomJobSpec
from prefect_vertex_launch.jobspec.config.arguments import (
    ARGUMENTS,
    EXTRA_ARGUMENTS,
    OTHER_NAMES,
    RUN_ARGUMENTS,
    SPEC_ARGUMENTS,
)
from prefect_vertex_launch.jobspec.config.machine_types import MACHINE_TYPES
from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from prefect_vertex_launch.jobspec.render import render
from tests.unit.sdk_job import (
    CONTEXT,
    IMAGE,
    assert_equal,
    extras,
    read_run_spec,
    runs,
    specs,
    tracking,
    words,
)


@settings(max_examples=80)
@given(specs, runs, tracking, st.lists(words, max_size=2), extras)
def test_the_rendered_job_equals_what_the_sdk_sends(
    spec: dict[str, Any],
    run: dict[str, Any],
    tracked: dict[str, Any],
    args: list[str],
    extra: tuple[str, dict[str, Any]],
) -> None:
    arguments = {"spec": spec, "run": {**run, **tracked}}
    section, more = extra
    assert_equal(**{**arguments, section: {**arguments[section], **more}}, args=args)


@settings(max_examples=20)
@given(specs)
def test_labels_that_fit_go_through_as_they_are(spec: dict[str, Any]) -> None:
    run_spec = read_run_spec(spec, {}, [])
    labels = render(run_spec, parse_queue_config(run_spec.resource_args), CONTEXT).job.labels
    assert (spec.get("labels") or {}).items() <= dict(labels).items()


PLAIN: dict[str, Any] = {
    "worker_pool_specs": [
        {
            "machine_spec": {"machine_type": "n1-standard-4"},
            "replica_count": 1,
            "container_spec": {"image_uri": IMAGE},
        }
    ],
    "staging_bucket": "gs://my-bucket",
}


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"max_wait_duration": 0},
        {"timeout": 0},
        {"timeout": 1},
        {"scheduling_strategy": 0},
        {"scheduling_strategy": "STRATEGY_UNSPECIFIED"},
        {"disable_retries": False, "restart_job_on_worker_restart": False, "enable_web_access": False},
        {"restart_job_on_worker_restart": True},
        {"network": "", "persistent_resource_id": "", "service_account": ""},
        {"psc_interface_config": {}},
    ],
)
def test_an_argument_that_means_little_by_itself_is_sent_as_the_sdk_does(run: dict[str, Any]) -> None:
    assert_equal(PLAIN, run, [])


def test_a_service_account_of_spec_is_sent() -> None:
    assert_equal({**PLAIN, "service_account": "a@p.iam.gserviceaccount.com"}, {}, [])


@pytest.mark.parametrize(
    ("ours", "function"),
    [(SPEC_ARGUMENTS, aiplatform.CustomJob.__init__), (RUN_ARGUMENTS, aiplatform.CustomJob.run)],
    ids=["spec", "run"],
)
def test_every_argument_of_the_installed_sdk_is_known(ours: Any, function: Any) -> None:
    assert set(ours) == set(inspect.signature(function).parameters) - {"self"}


def test_every_field_of_the_installed_sdks_job_can_be_set() -> None:
    reached = set(SPEC_ARGUMENTS) | set(RUN_ARGUMENTS) | set(OTHER_NAMES)
    fields = set(CustomJobSpec.pb(CustomJobSpec()).DESCRIPTOR.fields_by_name)
    assert fields - reached == set(EXTRA_ARGUMENTS)
    assert set(EXTRA_ARGUMENTS) <= set(ARGUMENTS["spec"]) & set(ARGUMENTS["run"])


def test_submit_takes_what_run_takes_but_sync() -> None:
    assert set(RUN_ARGUMENTS) - {"sync"} == set(inspect.signature(aiplatform.CustomJob.submit).parameters) - {
        "self"
    }


def test_every_accelerator_in_the_table_is_one_of_the_sdk() -> None:
    fitting = {kind for machine in MACHINE_TYPES.values() for kind in machine.accelerators}
    assert fitting <= set(AcceleratorType)
