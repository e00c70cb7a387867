"""The `launch` section: pools, replicas and fallbacks are read, checked at once, and laid over the rest."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest

from prefect_vertex_launch.core.errors import InvalidQueueConfig
from prefect_vertex_launch.jobspec.config.launch_options import CommandPools, LaunchOptions, RunIdReplicas
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig, QueueDefaults, parse_queue_config
from tests.unit.checked_config import ACCOUNT, POOL, POOLS, SPEC, only, pool, problems

LAUNCH = "resource_args.vertex.launch"
FIRST = f"{LAUNCH}.fallbacks[0]"
A100 = {"machine_type": "a2-highgpu-1g", "accelerator_type": "NVIDIA_TESLA_A100", "accelerator_count": 1}
L4 = {"machine_type": "g2-standard-8", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1}
REDUCTION = {
    "machine_spec": {"machine_type": "n1-highcpu-16"},
    "replica_count": 1,
    "container_spec": {"image_uri": "reduction:1"},
}


def item(launch: Any, spec: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> Any:
    return {"spec": {**SPEC, **(spec or {})}, "run": run or {}, "launch": launch}


def parse(launch: Any, spec: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> QueueConfig:
    return parse_queue_config(item(launch, spec, run))


def fallback(
    first: Any, spec: dict[str, Any] | None = None, run: dict[str, Any] | None = None
) -> QueueConfig:
    return parse({"fallbacks": [first]}, spec, run).plan(1)


def refused(first: Any, spec: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> Any:
    return problems(item({"fallbacks": [first]}, spec, run))


def machines(config: QueueConfig) -> list[Any]:
    return [each.get("machine_spec") for each in config.spec["worker_pool_specs"]]


# Pools and replicas


@pytest.mark.parametrize("launch", [None, {}, {"command_pools": None, "run_id_replicas": None}])
def test_without_a_word_the_pools_of_the_image_run_the_launch_and_the_primary_is_the_run(launch: Any) -> None:
    assert parse(launch).launch == LaunchOptions(CommandPools.IMAGE, RunIdReplicas.PRIMARY, ())


@pytest.mark.parametrize(
    ("value", "meant"), [("image", CommandPools.IMAGE), ("all", CommandPools.ALL), ([2, 0, 2], (0, 2))]
)
def test_the_pools_of_the_launch_are_chosen(value: Any, meant: Any) -> None:
    config = parse({"command_pools": value}, {"worker_pool_specs": [POOL, {}, POOL]})
    assert config.launch.command_pools == meant


@pytest.mark.parametrize(
    ("launch", "where", "words"),
    [
        ([], "", "an object"),
        ({"commandPools": "all"}, ".commandPools", "Did you mean command_pools?"),
        ({"run_id_replica": "all"}, ".run_id_replica", "Did you mean run_id_replicas?"),
        ({"fallback": []}, ".fallback", "Did you mean fallbacks?"),
        ({"timeout": 5}, ".timeout", "Known are: command_pools, fallbacks, run_id_replicas."),
        ({"command_pools": "All"}, ".command_pools", "Did you mean all?"),
        ({"command_pools": "none"}, ".command_pools", 'Write "image", "all" or a list of pool indices.'),
        ({"command_pools": 0}, ".command_pools", "a list of pool indices, got an integer"),
        ({"command_pools": []}, ".command_pools", "no pool would run the launch"),
        ({"command_pools": ["0"]}, ".command_pools[0]", "the index of a pool"),
        ({"command_pools": [True]}, ".command_pools[0]", "the index of a pool"),
        ({"command_pools": [3]}, ".command_pools", "pool 3 is not there"),
        ({"command_pools": [-1]}, ".command_pools", "pool -1 is not there"),
        ({"command_pools": [0, 1]}, ".command_pools", "pool 1 is empty"),
        ({"run_id_replicas": "first"}, ".run_id_replicas", '"primary" or "all"'),
        ({"run_id_replicas": "primry"}, ".run_id_replicas", "Did you mean primary?"),
        ({"run_id_replicas": 1}, ".run_id_replicas", '"primary" or "all"'),
    ],
)
def test_a_wrong_option_is_refused(launch: Any, where: str, words: str) -> None:
    found = problems(item(launch, {"worker_pool_specs": [POOL, {}, POOL]}))
    assert words in only(found, f"{LAUNCH}{where}")


def test_an_option_in_the_wrong_place_is_sent_to_the_right_one() -> None:
    found = problems({"spec": SPEC, "command_pools": "all"})
    assert "Move it to launch.command_pools" in only(found, "resource_args.vertex.command_pools")


def test_an_items_options_win_key_by_key_over_the_blocks() -> None:
    block = QueueDefaults(
        spec=SPEC,
        run={},
        launch={"command_pools": "all", "run_id_replicas": "all", "fallbacks": [{"location": "us-east1"}]},
    )
    own = parse_queue_config({"launch": {"run_id_replicas": "primary", "fallbacks": None}}, defaults=block)
    assert own.launch == LaunchOptions(CommandPools.ALL, RunIdReplicas.PRIMARY, ())
    theirs = parse_queue_config({}, defaults=block)
    assert theirs.launch.run_id_replicas is RunIdReplicas.ALL
    assert theirs.location_of(1) == "us-east1"


def test_a_wrong_option_of_the_block_has_the_blocks_path() -> None:
    found = problems({}, QueueDefaults(spec=SPEC, run={}, launch={"fallbacks": [{"locatoin": "us-east1"}]}))
    assert "Did you mean location?" in only(found, "block.launch.fallbacks[0].locatoin")


def test_a_block_whose_pools_come_with_the_run_may_have_options() -> None:
    launch = {"command_pools": [0, 2], "fallbacks": [{"machine_spec": A100, "location": "us-east1"}]}
    found = problems({"spec": {}, "run": {}}, QueueDefaults(spec={}, run={}, launch=launch))
    assert {where.rsplit(".", 1)[1] for where in found} == {"worker_pool_specs", "staging_bucket"}


# Plans


def test_the_first_plan_is_the_configuration_as_written() -> None:
    config = parse({"fallbacks": [{"location": "us-east1"}, {"run": {"timeout": 5}}]}, run={"timeout": 6})
    assert config.plan(0) is config
    assert [config.location_of(index) for index in range(3)] == [None, "us-east1", None]
    assert [config.plan(index).run for index in range(3)] == [{"timeout": 6}, {"timeout": 6}, {"timeout": 5}]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            config.plan(index)
        with pytest.raises(IndexError):
            config.location_of(index)


def test_each_fallback_is_laid_over_what_is_written_and_not_over_the_one_before() -> None:
    config = parse(
        {"fallbacks": [{"run": {"scheduling_strategy": "SPOT"}}, {"run": {"disable_retries": True}}]}
    )
    assert config.plan(1).run == {"scheduling_strategy": "SPOT"}
    assert config.plan(2).run == {"disable_retries": True}


def test_arguments_of_a_fallback_are_laid_over_one_by_one_as_an_items_are() -> None:
    own = {"spec": {"labels": {"b": "2"}, "service_account": ACCOUNT}, "run": {"network": None}}
    network = "projects/1/global/networks/n"
    run = {"network": network, "service_account": f"other-{ACCOUNT}", "timeout": 5}
    plan = fallback(own, {"labels": {"a": "1"}}, run)
    assert plan.spec["labels"] == {"b": "2"}
    assert plan.run == {"service_account": ACCOUNT, "timeout": 5}
    assert plan.path_of("run", "service_account") == f"{FIRST}.spec.service_account"


def test_a_machine_goes_into_every_pool_that_has_the_primary_pools() -> None:
    def on(machine: dict[str, Any]) -> dict[str, Any]:
        return {**POOL, "machine_spec": machine}

    pools = [on(A100), {}, REDUCTION, on({**A100, "tpu_topology": None})]
    before = copy.deepcopy(pools)
    plan = fallback({"machine_spec": {**L4, "tpu_topology": None}}, {"worker_pool_specs": pools})
    assert machines(plan) == [L4, None, REDUCTION["machine_spec"], L4]
    assert pools == before


def test_a_region_takes_the_place_of_the_one_in_spec() -> None:
    plan = fallback({"location": "europe-west4"}, {"location": "us-central1"})
    assert plan.spec["location"] == "europe-west4"
    assert plan.path_of("spec", "location") == f"{FIRST}.location"


def test_plans_do_not_share_what_they_hold() -> None:
    config = parse({"fallbacks": [{"location": "us-east1"}]}, {"labels": {"a": "1"}})
    config.plan(1).spec["labels"]["a"] = "2"
    config.plan(1).spec["worker_pool_specs"][0]["container_spec"]["image_uri"] = "other"
    assert config.spec["labels"] == {"a": "1"}
    assert config.spec["worker_pool_specs"] == [POOL]


# What is wrong with a fallback


@pytest.mark.parametrize(
    ("first", "where", "words"),
    [
        (5, "", "an object with location"),
        ({"locations": "us-east1"}, ".locations", "Did you mean location?"),
        ({"fallbacks": []}, ".fallbacks", "is not a field of a fallback"),
        ({"timeout": 5}, ".timeout", "Move it to run.timeout"),
        ({"spec": {"timeout": 5}}, ".spec.timeout", "Move it to run.timeout"),
        ({"location": 5}, ".location", "a string"),
        ({"location": "US East"}, ".location", "us-central1"),
        ({"location": "${region}"}, ".location", "before macros are filled in"),
        ({"spec": {"location": "us-east1"}}, ".spec.location", f"Move it to {FIRST}.location"),
        ({"machine_spec": "a2-highgpu-1g"}, ".machine_spec", "an object (MachineSpec)"),
        ({"machine_spec": {}}, ".machine_spec.machine_type", "a pool needs a machine type"),
        (
            {"machine_spec": {"machine_type": "n1-standard-8", "accelerator_typ": "NVIDIA_TESLA_T4"}},
            ".machine_spec.accelerator_typ",
            "Did you mean accelerator_type?",
        ),
        (
            {"machine_spec": {**L4, "machine_type": "n1-standard-8"}},
            ".machine_spec.accelerator_type",
            "does not fit onto n1-standard-8",
        ),
        (
            {"machine_spec": L4, "spec": {"worker_pool_specs": [{**POOL, "machine_spec": A100}]}},
            ".machine_spec",
            "set beside spec.worker_pool_specs",
        ),
        ({"run": {"scheduling_strategy": "spot"}}, ".run.scheduling_strategy", "Did you mean SPOT?"),
        ({"run": {"tiemout": 5}}, ".run.tiemout", "Did you mean timeout?"),
        ({"run": [5]}, ".run", "an object"),
        (
            {"spec": {"worker_pool_specs": [{**POOL, "replica_count": 2}]}},
            ".spec.worker_pool_specs[0].replica_count",
            "Set it to 1",
        ),
        ({"spec": {"worker_pool_specs": None}}, ".spec.worker_pool_specs", "at least one worker pool"),
        ({"run": {"experiment": "e"}}, ".run.experiment", "service_account"),
        ({}, "", "changes nothing"),
        ({"location": None, "run": {}}, "", "changes nothing"),
        ({"location": ""}, "", "changes nothing"),
        ({"machine_spec": POOL["machine_spec"]}, "", "changes nothing"),
        ({"run": {"timeout": 60, "network": ""}, "spec": {"labels": None}}, "", "changes nothing"),
    ],
)
def test_a_wrong_fallback_is_refused_at_its_own_path(first: Any, where: str, words: str) -> None:
    assert words in only(refused(first, run={"timeout": 60}), f"{FIRST}{where}")


def test_a_rule_that_only_a_fallback_breaks_is_said_with_it() -> None:
    run = {"experiment": "e", "service_account": ACCOUNT}
    text = only(refused({"run": {"service_account": ""}}, run=run), FIRST)
    assert text.startswith(f"{FIRST}: with it, resource_args.vertex.run.experiment: set without service_acc")
    pools = {"spec": {"worker_pool_specs": [POOL]}}
    launch = {"command_pools": [0, 1], "fallbacks": [pools]}
    found = problems(item(launch, {"worker_pool_specs": [POOL, POOL]}))
    assert f"with it, {LAUNCH}.command_pools: pool 1 is not there" in only(found, FIRST)


def test_problems_of_all_fallbacks_come_at_once_and_those_of_the_rest_only_once() -> None:
    launch = {"fallbacks": [{"location": "us-east1"}, {"locatoin": ""}, {"run": {"timeout": "1h"}}, {}]}
    found = problems(item(launch, {"worker_pool_specs": [{**POOL, "replica_count": 2}], "labels": 1}))
    assert set(found) == {
        f"{POOLS}[0].replica_count",
        "resource_args.vertex.spec.labels",
        f"{LAUNCH}.fallbacks[1].locatoin",
        f"{LAUNCH}.fallbacks[2].run.timeout",
        f"{LAUNCH}.fallbacks[3]",
    }


def test_a_mistyped_argument_is_not_missing_in_a_fallback_either() -> None:
    config = {
        "spec": {"workerPoolSpecs": [POOL], "staging_bucket": "gs://my-bucket"},
        "launch": {"fallbacks": [{"location": "us-east1"}]},
    }
    only(problems(config), "resource_args.vertex.spec.workerPoolSpecs")


def test_ten_fallbacks_are_the_most() -> None:
    many = [{"run": {"timeout": seconds}} for seconds in range(1, 11)]
    assert parse({"fallbacks": many}).plan(10).run == {"timeout": 10}
    found = problems(item({"fallbacks": [*many, {"location": "us-east1"}]}))
    assert "at most 10" in only(found, f"{LAUNCH}.fallbacks")
    assert "Put the fallback into a list" in only(
        problems(item({"fallbacks": {"location": "us-east1"}})), f"{LAUNCH}.fallbacks"
    )


def test_a_fallback_of_the_block_that_is_what_the_item_asks_for_is_only_a_warning() -> None:
    block = QueueDefaults(
        spec=SPEC, run={"scheduling_strategy": "SPOT"},
        launch={"fallbacks": [{"run": {"scheduling_strategy": "STANDARD"}}]},
    )  # fmt: skip
    config = parse_queue_config({"run": {"scheduling_strategy": "STANDARD"}}, defaults=block)
    assert config.warnings[0].startswith("block.launch.fallbacks[0]: changes nothing in this launch")


def test_a_block_with_a_fallback_that_changes_nothing_is_refused() -> None:
    block = QueueDefaults(spec={}, run={"timeout": 5}, launch={"fallbacks": [{"run": {"timeout": 5}}]})
    with pytest.raises(InvalidQueueConfig, match=r"block.launch.fallbacks\[0\]: changes nothing"):
        parse_queue_config({"spec": {}, "run": {"timeout": 5}}, defaults=block, where="block")


def test_what_is_doubtful_in_a_fallback_is_a_warning_at_its_path_and_the_rest_is_said_once() -> None:
    first = {"machine_spec": {"machine_type": "z9-standard-4"}, "run": {"scheduling_strategy": "LOW_COST"}}
    config = parse({"fallbacks": [first]}, pool(disk_spec={"boot_disk_type": "floppy"}))
    assert [warning.split(": ")[0] for warning in config.warnings] == [
        f"{POOLS}[0].disk_spec.boot_disk_type",
        f"{FIRST}.machine_spec.machine_type",
        f"{FIRST}.run.scheduling_strategy",
    ]
    network = "projects/1/global/networks/n"
    joint = parse({"fallbacks": [{"spec": {"reserved_ip_ranges": ["r"]}, "run": {"network": ""}}]},
                  run={"network": network})  # fmt: skip
    assert any(FIRST in warning and "only with network" in warning for warning in joint.warnings)


def test_no_combination_of_fallbacks_is_more_than_a_refusal() -> None:
    odd = [None, {}, [], "x", 5, {"x": 1}, {"machine_spec": None}, {"machine_spec": [1]}]
    for entry, place in itertools.product(odd, ["location", "machine_spec", "spec", "run", ""]):
        value = {place: entry} if place else entry
        for spec in (SPEC, {}, {"worker_pool_specs": [{}, None, 5]}, {"worker_pool_specs": {}}):
            with pytest.raises(InvalidQueueConfig):
                parse_queue_config({"spec": spec, "launch": {"fallbacks": [value, {"locaton": "x"}]}})
