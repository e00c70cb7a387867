"""An item's configuration laid over that of the queue's block, argument by argument."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig, QueueDefaults, parse_queue_config
from tests.unit.checked_config import ACCOUNT, POOL, SPEC, only, problems


def test_an_items_arguments_win_one_by_one_over_the_blocks() -> None:
    defaults = QueueDefaults(spec={**SPEC, "labels": {"a": "1"}}, run={"timeout": 5, "disable_retries": True})
    config = parse_queue_config({"spec": {"labels": {"b": "2"}}, "run": {"timeout": 6}}, defaults=defaults)
    assert config.spec["labels"] == {"b": "2"}
    assert config.spec["worker_pool_specs"] == [POOL]
    assert config.run == {"timeout": 6, "disable_retries": True}


SECTIONS = pytest.mark.parametrize(
    ("of_block", "of_item"), [("run", "spec"), ("spec", "run"), ("run", "run"), ("spec", "spec")]
)


def layered(name: str, of_block: str, theirs: Any, of_item: str, own: Any) -> QueueConfig:
    block: dict[str, dict[str, Any]] = {"spec": dict(SPEC), "run": {}}
    block[of_block][name] = theirs
    return parse_queue_config({of_item: {name: own}}, defaults=QueueDefaults(**block))


@SECTIONS
def test_an_items_service_account_wins_in_whichever_section(of_block: str, of_item: str) -> None:
    other = f"other-{ACCOUNT}"
    config = layered("service_account", of_block, ACCOUNT, of_item, other)
    assert config.run == {"service_account": other}
    assert config.path_of("run", "service_account") == f"resource_args.vertex.{of_item}.service_account"
    for empty in ("", None):
        kept = layered("service_account", of_block, ACCOUNT, of_item, empty)
        assert not kept.run.get("service_account")


@SECTIONS
def test_an_items_models_win_in_whichever_section(of_block: str, of_item: str) -> None:
    theirs, own = "projects/p/locations/l/models/1", "projects/p/locations/l/models/2"
    assert layered("models", of_block, [theirs], of_item, [own]).run == {"models": [own]}
    for empty in ([], None):
        assert not layered("models", of_block, [theirs], of_item, empty).run.get("models")


@SECTIONS
def test_an_items_persistent_resource_wins_in_whichever_section(of_block: str, of_item: str) -> None:
    config = layered("persistent_resource_id", of_block, "theirs", of_item, "own")
    found = [
        section["persistent_resource_id"]
        for section in (config.spec, config.run)
        if "persistent_resource_id" in section
    ]
    assert found == ["own"]
    assert config.warnings == ()


@pytest.mark.parametrize("section", ["spec", "run"])
def test_a_service_account_of_the_block_stays_where_the_item_has_none(section: str) -> None:
    block: dict[str, dict[str, Any]] = {"spec": dict(SPEC), "run": {}}
    block[section]["service_account"] = ACCOUNT
    config = parse_queue_config({"run": {"timeout": 5}}, defaults=QueueDefaults(**block))
    assert config.run == {"service_account": ACCOUNT, "timeout": 5}
    assert config.path_of("run", "service_account") == f"block.{section}.service_account"


def test_two_service_accounts_of_the_block_are_refused_only_if_they_are_used() -> None:
    defaults = QueueDefaults(
        spec={**SPEC, "service_account": ACCOUNT}, run={"service_account": f"other-{ACCOUNT}"}
    )
    only(problems({}, defaults), "block.spec.service_account")
    own = {"spec": {"service_account": f"own-{ACCOUNT}"}}
    assert parse_queue_config(own, defaults=defaults).run == {"service_account": f"own-{ACCOUNT}"}


def test_the_blocks_bucket_is_the_last_resort() -> None:
    block = QueueDefaults(spec={}, run={}, staging_bucket="gs://from-block")
    spec = {"worker_pool_specs": [POOL]}
    assert parse_queue_config({"spec": spec}, defaults=block).spec["staging_bucket"] == "gs://from-block"
    own = {**spec, "staging_bucket": "gs://from-item"}
    assert parse_queue_config({"spec": own}, defaults=block).spec["staging_bucket"] == "gs://from-item"


def test_a_problem_in_the_blocks_defaults_has_the_blocks_path() -> None:
    defaults = QueueDefaults(spec={**SPEC, "labels": 5}, run={"tiemout": 5}, staging_bucket=None)
    assert set(problems({}, defaults)) == {"block.spec.labels", "block.run.tiemout"}
    bucket = QueueDefaults(spec={}, run={}, staging_bucket="no-scheme")
    only(problems({"spec": {"worker_pool_specs": [POOL]}}, bucket), "block.staging_bucket")


def test_neither_item_nor_block_is_changed_by_parsing() -> None:
    item = {"spec": {**copy.deepcopy(SPEC), "service_account": ACCOUNT}, "run": {}}
    defaults = QueueDefaults(spec={"labels": {"a": "b"}}, run={"timeout": 5})
    before = copy.deepcopy((item, dict(defaults.spec), dict(defaults.run)))
    config = parse_queue_config(item, defaults=defaults)
    config.spec["worker_pool_specs"][0]["container_spec"]["image_uri"] = "changed"
    config.spec["labels"]["a"] = "changed"
    assert (item, dict(defaults.spec), dict(defaults.run)) == before
