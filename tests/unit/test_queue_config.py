"""A queue's configuration: what is right goes through, what is wrong is refused with its exact path."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_vertex_launch.core.errors import InvalidQueueConfig
from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from tests.unit.checked_config import (
    ACCOUNT,
    NETWORK,
    POOL,
    POOLS,
    SPEC,
    container,
    machine,
    only,
    parse,
    pool,
    problems,
    refused,
)

# What is required


@pytest.mark.parametrize("pools", [None, [], ...])
def test_worker_pools_are_required(pools: Any) -> None:
    spec = {"staging_bucket": "gs://my-bucket"} | ({} if pools is ... else {"worker_pool_specs": pools})
    assert "at least one worker pool" in only(problems({"spec": spec}), POOLS)


def test_a_staging_bucket_is_required() -> None:
    found = problems({"spec": {"worker_pool_specs": [POOL]}})
    assert "gs://" in only(found, "resource_args.vertex.spec.staging_bucket")


@pytest.mark.parametrize("config", [None, {}, {"spec": None}, {"spec": {}, "run": None}])
def test_an_empty_configuration_names_both_that_are_missing(config: Any) -> None:
    assert set(problems(config)) == {POOLS, "resource_args.vertex.spec.staging_bucket"}


@pytest.mark.parametrize("name", ["staging_bucket", "base_output_dir"])
@pytest.mark.parametrize("value", ["my-bucket", "s3://my-bucket", "gs://", "gs:/my-bucket", "/data", 5])
def test_buckets_are_gs_uris(name: str, value: Any) -> None:
    only(refused({name: value}), f"resource_args.vertex.spec.{name}")


def test_a_bucket_without_its_scheme_is_told_how_to_write_it() -> None:
    assert "Write gs://my-bucket/x." in str(*refused({"staging_bucket": "my-bucket/x"}).values())


# Names and kinds of arguments


@pytest.mark.parametrize(
    ("section", "typo", "right"),
    [
        ("spec", "workerPoolSpecs", "worker_pool_specs"),
        ("spec", "staging_buckets", "staging_bucket"),
        ("spec", "baseOutputDir", "base_output_dir"),
        ("run", "restartJobOnWorkerRestart", "restart_job_on_worker_restart"),
        ("run", "time_out", "timeout"),
        ("run", "Network", "network"),
    ],
)
def test_a_mistyped_argument_is_refused_with_the_right_spelling(section: str, typo: str, right: str) -> None:
    found = refused(**{section: {typo: None}})
    assert f"Did you mean {right}?" in only(found, f"resource_args.vertex.{section}.{typo}")


@pytest.mark.parametrize(
    ("changes", "where", "right"),
    [
        (pool(machineSpec={}), "[0].machineSpec", "machine_spec"),
        (pool(replicacount=1), "[0].replicacount", "replica_count"),
        (container(imageUri="i"), "[0].container_spec.imageUri", "image_uri"),
        (container(env=[{"nmae": "A", "name": "A"}]), "[0].container_spec.env[0].nmae", "name"),
        (
            machine("n1-standard-4", acceleratorType="X"),
            "[0].machine_spec.acceleratorType",
            "accelerator_type",
        ),
        (
            machine("n1-standard-4", reservation_affinity={"valuess": []}),
            "[0].machine_spec.reservation_affinity.valuess",
            "values",
        ),
    ],
)
def test_a_mistyped_key_at_any_depth_is_refused(changes: dict[str, Any], where: str, right: str) -> None:
    assert f"Did you mean {right}?" in only(refused(changes), POOLS + where)


def test_a_mistyped_required_key_is_one_problem_and_not_also_missing() -> None:
    found = problems({"spec": {"workerPoolSpecs": [POOL], "staging_bucket": "gs://my-bucket"}})
    assert only(found, "resource_args.vertex.spec.workerPoolSpecs").endswith(
        "Did you mean worker_pool_specs?"
    )


def test_an_argument_in_the_wrong_section_is_sent_to_the_right_one() -> None:
    assert "Move it to run.timeout" in str(*refused(spec={"timeout": 3}).values())
    assert "Move it to spec.labels" in str(*refused(run={"labels": {}}).values())
    found = problems({"spec": SPEC, "worker_pool_specs": []})
    assert "Move it to spec.worker_pool_specs" in only(found, "resource_args.vertex.worker_pool_specs")


def test_scheduling_and_output_directory_go_by_other_names() -> None:
    found = refused({"scheduling": {}, "base_output_directory": {}, "encryption_spec": {}})
    assert "run.timeout" in found["resource_args.vertex.spec.scheduling"].fix
    assert "encryption_spec_key_name" in found["resource_args.vertex.spec.encryption_spec"].fix
    assert "spec.base_output_dir" in found["resource_args.vertex.spec.base_output_directory"].fix


def test_credentials_are_refused_with_the_reason() -> None:
    found = refused({"credentials": {"type": "service_account", "private_key": "s3cr3t"}})
    text = only(found, "resource_args.vertex.spec.credentials")
    assert "block" in text
    assert "s3cr3t" not in text


def test_a_builder_is_refused_unless_empty() -> None:
    assert parse_queue_config({"spec": SPEC, "builder": {}})
    only(problems({"spec": SPEC, "builder": {"accelerator": {}}}), "resource_args.vertex.builder")


@pytest.mark.parametrize(
    ("run", "wanted"),
    [
        ({"timeout": "3600"}, "Write 3600"),
        ({"timeout": "3600s"}, "Write 3600"),
        ({"timeout": "1h"}, "whole seconds"),
        ({"timeout": 3600.5}, "whole seconds"),
        ({"timeout": True}, "whole seconds"),
        ({"timeout": -1}, "between 0"),
        ({"max_wait_duration": "0s"}, "Write 0"),
        ({"max_wait_duration": 10**13}, "between 0"),
        ({"create_request_timeout": 0}, "more than 0"),
        ({"create_request_timeout": "5"}, "more than 0"),
        ({"create_request_timeout": 3600.5}, "to 3600, got 3600.5 (it is how long one request"),
        ({"create_request_timeout": 7200}, "the job's own limit is run.timeout"),
        ({"create_request_timeout": 36_000}, "more than 0 to 3600"),
        ({"create_request_timeout": True}, "Write a number without quotes, such as 120"),
        ({"timeout": [1]}, "Write a number without quotes or fraction, such as 3600"),
        ({"disable_retries": "no"}, "Write true or false, without quotes."),
        ({"scheduling_strategy": []}, "Known are: "),
        ({"scheduling_strategy": 98}, "Write its name. Known are: "),
        ({"enable_web_access": "yes"}, "true or false"),
        ({"disable_retries": 1}, "true or false"),
        ({"restart_job_on_worker_restart": "true"}, "true or false"),
        ({"sync": "no"}, "true or false"),
        ({"scheduling_strategy": "spot"}, "Did you mean SPOT?"),
        ({"scheduling_strategy": 99}, "not the number"),
        # What is left of it in 32 bits would be the number of one.
        ({"scheduling_strategy": 2**40}, "not the number"),
        ({"scheduling_strategy": 2**32 + 1}, "not the number"),
        ({"scheduling_strategy": -(2**40)}, "not the number"),
        ({"scheduling_strategy": 1.0}, "the name of"),
        ({"network": "my-vpc"}, "projects/12345/global/networks/my-vpc"),
        ({"service_account": "trainer"}, "iam.gserviceaccount.com"),
        ({"persistent_resource_id": "Upper"}, "my-persistent-resource"),
        ({"persistent_resource_id": "ends-"}, "my-persistent-resource"),
        ({"tensorboard": "tb", "service_account": ACCOUNT}, "tensorboards/123"),
        ({"experiment": "Exp Name", "service_account": ACCOUNT}, "my-experiment"),
        ({"experiment_run": "a/b", "experiment": "e", "service_account": ACCOUNT}, "my-run"),
        ({"psc_interface_config": {"networkAttachment": "a"}}, "Did you mean network_attachment?"),
        ({"psc_interface_config": "a"}, "an object"),
        ({"network": ["a"]}, "a string"),
    ],
)
def test_a_wrong_value_of_run_is_refused(run: dict[str, Any], wanted: str) -> None:
    (found,) = refused(run=run).values()
    assert found.where.startswith(f"resource_args.vertex.run.{next(iter(run))}")
    assert wanted in str(found)


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"labels": ["a"]}, "labels"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {"a": None}}, "labels.a"),
        ({"display_name": 5}, "display_name"),
        ({"encryption_spec_key_name": "my-key"}, "encryption_spec_key_name"),
        ({"location": "Frankfurt am Main"}, "location"),
        ({"worker_pool_specs": POOL}, "worker_pool_specs"),
        ({"worker_pool_specs": "x"}, "worker_pool_specs"),
        ({"worker_pool_specs": [POOL, None]}, "worker_pool_specs[1]"),
        ({"worker_pool_specs": [POOL, "x"]}, "worker_pool_specs[1]"),
    ],
)
def test_a_wrong_value_of_spec_is_refused(spec: dict[str, Any], where: str) -> None:
    only(refused(spec), f"resource_args.vertex.spec.{where}")


# Worker pools


@pytest.mark.parametrize(
    ("changes", "where", "wanted"),
    [
        (container(command="python train.py"), "container_spec.command", "One"),
        (container(args=["--lr", 0.1]), "container_spec.args[1]", "quotes"),
        (container(args={"lr": 1}), "container_spec.args", "got an object. Put it into a list: […]."),
        (container(args=[["a"]]), "container_spec.args[0]", "got a list. Write a string."),
        (container(env=[None]), "container_spec.env[0]", 'Write {"name": …}.'),
        (container(command=["a\0b"]), "container_spec.command[0]", "NUL"),
        (container(env={"A": "1"}), "container_spec.env", '[{"name": "A"'),
        (container(env=[{"name": "A", "value": 1}]), "container_spec.env[0].value", "a string"),
        (container(env=["A=1"]), "container_spec.env[0]", "an object"),
        (container(env=[{"name": "1A"}]), "container_spec.env[0].name", "not a valid name"),
        (container(env=[{"value": "x"}]), "container_spec.env[0].name", "missing"),
        (container(env=[{"name": "A"}, {"name": "A"}]), "container_spec.env[1].name", "twice"),
        (container(env=[{"name": f"A{i}"} for i in range(101)]), "container_spec.env", "100"),
        (pool(container_spec={}), "container_spec.image_uri", "missing"),
        (pool(container_spec={"image_uri": 5}), "container_spec.image_uri", "a string"),
        (pool(container_spec="img"), "container_spec", "an object"),
        (pool(replica_count=1.5), "replica_count", "got 1.5. Write a number without quotes or fraction"),
        (pool(replica_count=True), "replica_count", "true/false"),
        (pool(replica_count="1"), "replica_count", "a string"),
        (pool(replica_count=2), "replica_count", "Set it to 1"),
        (pool(replica_count=0), "replica_count", "Set it to 1"),
        (pool(replica_count=...), "replica_count", "missing"),
        (pool(replica_count=None), "replica_count", "Set it to 1"),
        (pool(replica_count=1 << 70), "replica_count", "64 bits"),
        (pool(machine_spec=...), "machine_spec.machine_type", "missing"),
        (pool(machine_spec=5), "machine_spec", "an object"),
        (
            machine("n1-standard-4", reservation_affinity={"reservation_affinity_type": ["ANY"]}),
            "machine_spec.reservation_affinity.reservation_affinity_type",
            "the name of a Type",
        ),
        (pool(disk_spec={"boot_disk_size_gb": 99}), "disk_spec.boot_disk_size_gb", "100 to 64000"),
        (pool(disk_spec={"boot_disk_size_gb": 64001}), "disk_spec.boot_disk_size_gb", "100 to 64000"),
        (pool(disk_spec=[]), "disk_spec", "an object"),
        (
            pool(nfs_mounts=[{"server": "10.0.0.1", "path": "x", "mount_point": "m"}]),
            "nfs_mounts[0].path",
            "start with /",
        ),
        (
            pool(nfs_mounts=[{"server": "10.0.0.1", "path": "/x"}]),
            "nfs_mounts[0].mount_point",
            "missing",
        ),
    ],
)
def test_a_wrong_pool_is_refused(changes: dict[str, Any], where: str, wanted: str) -> None:
    text = only(refused(changes), f"{POOLS}[0].{where}")
    assert wanted.lower() in text.lower()


def test_both_kinds_of_task_are_refused() -> None:
    package = {"executor_image_uri": "e", "package_uris": ["gs://b/p"], "python_module": "m"}
    assert "container_spec and python_package_spec" in only(
        refused(pool(python_package_spec=package)), f"{POOLS}[0]"
    )


def test_a_pool_without_a_task_is_refused() -> None:
    assert "neither" in only(refused(pool(container_spec=...)), f"{POOLS}[0]")


def test_a_python_package_names_its_parts() -> None:
    found = refused(pool(container_spec=..., python_package_spec={"package_uris": ["/local"]}))
    assert {where.rsplit(".", 1)[1] for where in found} == {
        "executor_image_uri", "python_module", "package_uris[0]",
    }  # fmt: skip


def test_the_first_pool_may_not_be_empty_but_others_may() -> None:
    worker = {**POOL, "replica_count": 3}
    assert len(parse({"worker_pool_specs": [POOL, {}, worker]}).spec["worker_pool_specs"]) == 3
    only(refused({"worker_pool_specs": [{}, POOL]}), f"{POOLS}[0]")


def test_four_pools_are_the_most() -> None:
    assert parse({"worker_pool_specs": [POOL] * 4})
    assert "5 worker pools" in only(refused({"worker_pool_specs": [POOL] * 5}), POOLS)


def test_a_wrong_value_in_the_second_pool_has_its_index() -> None:
    only(refused({"worker_pool_specs": [POOL, {**POOL, "replica_count": -1}]}), f"{POOLS}[1].replica_count")


@pytest.mark.parametrize("count", [0, None, ...])
def test_a_later_pool_has_a_replica_or_is_empty(count: Any) -> None:
    (worker,) = pool(replica_count=count)["worker_pool_specs"]
    text = only(refused({"worker_pool_specs": [POOL, {}, worker]}), f"{POOLS}[2].replica_count")
    assert "Set it to 1 or more, or write {}" in text


def test_a_persistent_resource_may_know_the_machine() -> None:
    config = parse({**pool(machine_spec=...), "persistent_resource_id": "my-resource"})
    assert any("machine_type" in warning for warning in config.warnings)


# Macros


@pytest.mark.parametrize(
    "spec",
    [
        pool(replica_count="${replicas}"),
        machine("${machine}", accelerator_type="${gpu}", accelerator_count="${gpus}"),
        machine("a2-highgpu-1g", accelerator_type="${gpu}", accelerator_count=3),
        {"staging_bucket": "${bucket}"},
        {"encryption_spec_key_name": "${key}"},
        {"labels": {"owner": "${author}"}},
        container(env=[{"name": "${a}"}, {"name": "${a}"}, {"name": "1${b}"}]),
        pool(disk_spec={"boot_disk_size_gb": "${disk}", "boot_disk_type": "${type}"}),
    ],
)
def test_a_value_that_is_a_macro_waits_for_the_launch(spec: dict[str, Any]) -> None:
    parse(spec)


def test_run_arguments_may_be_macros() -> None:
    parse(
        run={"timeout": "${t}", "scheduling_strategy": "${s}", "network": "${n}", "disable_retries": "${d}"}
    )


def test_a_number_with_more_than_a_macro_is_refused() -> None:
    only(refused(pool(replica_count="1${n}")), f"{POOLS}[0].replica_count")


# Arguments together


def test_a_service_account_may_stand_in_either_section() -> None:
    assert parse({"service_account": ACCOUNT}).run["service_account"] == ACCOUNT
    assert parse(run={"service_account": ACCOUNT}).run["service_account"] == ACCOUNT
    same = parse({"service_account": ACCOUNT}, {"service_account": ACCOUNT})
    assert (same.run, "service_account" in same.spec) == ({"service_account": ACCOUNT}, False)


def test_two_service_accounts_are_refused() -> None:
    found = refused({"service_account": ACCOUNT}, {"service_account": f"other-{ACCOUNT}"})
    only(found, "resource_args.vertex.spec.service_account")


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_service_account_is_none(empty: Any) -> None:
    assert parse({"service_account": ACCOUNT}, {"service_account": empty}).run == {"service_account": ACCOUNT}
    assert parse({"service_account": empty}, {"service_account": ACCOUNT}).run == {"service_account": ACCOUNT}
    assert not parse({"service_account": empty}, {"service_account": empty}).run.get("service_account")


def test_a_service_account_of_spec_keeps_its_path() -> None:
    only(
        refused({"service_account": 5}, {"service_account": ""}), "resource_args.vertex.spec.service_account"
    )
    config = parse({"service_account": "${account}"})
    assert config.path_of("run", "service_account") == "resource_args.vertex.spec.service_account"


@pytest.mark.parametrize("seconds", [0.001, 1, 3600, 3600.0])
def test_a_call_may_take_an_hour_at_most(seconds: float) -> None:
    assert parse(run={"create_request_timeout": seconds}).run["create_request_timeout"] == seconds


def test_experiment_and_tensorboard_exclude_each_other() -> None:
    tensorboard = "projects/p/locations/l/tensorboards/1"
    run = {"experiment": "e", "tensorboard": tensorboard, "service_account": ACCOUNT}
    assert "both" in only(refused(run=run), "resource_args.vertex.run.experiment")


def test_an_experiment_run_needs_an_experiment() -> None:
    only(refused(run={"experiment_run": "r"}), "resource_args.vertex.run.experiment_run")


@pytest.mark.parametrize(
    "run", [{"experiment": "e"}, {"tensorboard": "projects/p/locations/l/tensorboards/1"}]
)
def test_tracking_needs_a_service_account(run: dict[str, Any]) -> None:
    assert "service_account" in str(*refused(run=run).values())
    assert parse({"service_account": ACCOUNT}, run)


@pytest.mark.parametrize(
    ("spec", "run", "words"),
    [
        ({}, {"sync": True}, "has no effect"),
        ({}, {"timeout": 0}, "same as not set"),
        ({}, {"max_wait_duration": 5}, "only with FLEX_START"),
        ({}, {"disable_retries": True, "restart_job_on_worker_restart": True}, "overrides"),
        ({}, {"scheduling_strategy": "ON_DEMAND"}, "deprecated"),
        ({}, {"scheduling_strategy": "FLEX_START"}, "GPUs only"),
        ({}, {"scheduling_strategy": 6}, "GPUs only"),
        ({}, {"scheduling_strategy": "FLEX_START", "timeout": 700_000}, "7 days"),
        ({}, {"network": "projects/my-project/global/networks/n"}, "number"),
        ({}, {"reserved_ip_ranges": ["r"]}, "only with network"),
        ({}, {"network": NETWORK, "psc_interface_config": {"network_attachment": "a"}}, "psc_"),
        (pool(nfs_mounts=[{"server": "s", "path": "/x", "mount_point": "m"}]), {}, "peered network"),
        ({"persistent_resource_id": "a"}, {"persistent_resource_id": "b"}, "the one in run is used"),
        (pool(disk_spec={"boot_disk_type": "floppy"}), {}, "none of"),
        (machine("z9-standard-4"), {}, "not in the list"),
        (machine("n1-standart-4"), {}, "did you mean n1-standard-4"),
        (machine("ct5lp-hightpu-1t"), {}, "topology"),
    ],
)  # fmt: skip
def test_what_is_doubtful_is_a_warning(spec: dict[str, Any], run: dict[str, Any], words: str) -> None:
    assert any(words in warning for warning in parse(spec, run).warnings), parse(spec, run).warnings


def test_an_ordinary_configuration_has_no_warnings() -> None:
    config = parse({"labels": {"team": "a"}}, {"timeout": 3600, "scheduling_strategy": "SPOT"})
    assert config.warnings == ()
    assert config.spec["worker_pool_specs"] == [POOL]


def test_nulls_are_the_same_as_nothing() -> None:
    config = parse({**container(env=None, args=None), "labels": None}, {"timeout": None})
    assert config.spec["worker_pool_specs"][0]["container_spec"] == {"image_uri": "img"}
    assert "labels" not in config.spec
    assert config.run == {}


# The whole


def test_all_problems_come_at_once_each_with_its_path() -> None:
    found = problems(
        {
            "spec": {
                "workerPoolSpecs": [],
                "worker_pool_specs": [{**POOL, "replica_count": 1.5, "container_spec": {"command": "x"}}],
                "staging_bucket": "b",
            },
            "run": {"timeout": "1s"},
            "extra": 1,
        }
    )
    assert set(found) == {
        "resource_args.vertex.spec.workerPoolSpecs",
        f"{POOLS}[0].replica_count",
        f"{POOLS}[0].container_spec.command",
        f"{POOLS}[0].container_spec.image_uri",
        "resource_args.vertex.spec.staging_bucket",
        "resource_args.vertex.run.timeout",
        "resource_args.vertex.extra",
    }


def test_the_path_starts_where_the_caller_says() -> None:
    with pytest.raises(InvalidQueueConfig) as caught:
        parse_queue_config({"spec": {**SPEC, "labels": 1}}, where="resource_args.gcp-vertex")
    assert caught.value.problems[0].where == "resource_args.gcp-vertex.spec.labels"


def test_a_megabyte_and_ten_thousand_levels_are_refused() -> None:
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    assert "480 KiB" in only(refused({"labels": {"a": "x" * 1_000_000}}), "resource_args.vertex")
    assert "100 levels" in only(refused(container(args=deep)), "resource_args.vertex")


def test_a_hundred_problems_are_enough() -> None:
    found = refused(container(args=[1] * 5000))
    *_, last = found
    assert (len(found), last) == (101, "further problems")
    assert str(found[last]) == ("further problems: not looked for after these 100. Correct these first.")
    assert "further problems" not in refused(container(args=[1] * 100))


def test_the_problems_of_fallbacks_end_as_well() -> None:
    wrong = {"spec": container(args=[1] * 5000)}
    found = problems({"spec": SPEC, "launch": {"fallbacks": [wrong, {"location": "us-east1"}]}})
    assert list(found)[-1] == "further problems"


def test_values_of_variables_never_show_in_errors_or_in_repr() -> None:
    found = refused(
        container(env=[{"name": "A", "value": ["s3cr3t"]}, {"name": "s3cr3t", "valeu": "s3cr3t"}])
    )
    assert not any("s3cr3t" in str(problem) for problem in found.values())
    assert "s3cr3t" not in repr(parse(container(env=[{"name": "A", "value": "s3cr3t"}])))
