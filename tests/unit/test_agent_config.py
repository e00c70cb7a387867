"""The configuration of W&B's agent: what becomes of each field, and everything that is wrong at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from wandb.sdk.launch.agent.config import AgentConfig, BuilderConfig, EnvironmentConfig, RegistryConfig

from prefect_vertex_launch.cli.migrate.agent_config import read_agent_config
from prefect_vertex_launch.cli.migrate.migration import Fate, Migration
from prefect_vertex_launch.cli.migrate.queue_review import review_queue

GCP = {"type": "gcp", "region": "europe-west4"}
SECRET = "k" * 40
POOL: dict[str, Any] = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 1,
    "container_spec": {"image_uri": "${image_uri}"},
}
SPEC: dict[str, Any] = {"worker_pool_specs": [POOL], "staging_bucket": "gs://bucket"}


def read(environ: dict[str, str] | None = None, **fields: Any) -> Migration:
    return read_agent_config({"entity": "team", "queues": ["q"], "environment": GCP, **fields}, environ or {})


def fates(migration: Migration) -> dict[str, Fate]:
    return {row.key: row.fate for row in migration.rows}


def wrong(migration: Migration) -> list[str]:
    return [problem.where for problem in migration.problems]


def test_an_ordinary_file_becomes_the_fields_of_a_block():
    migration = read(max_jobs=4, max_schedulers=2, secure_mode=True, stopped_run_timeout=90)
    assert not migration.problems
    assert migration.queues == ("q",)
    assert migration.block_fields("api.wandb.ai", "team") == {
        "entity": "team",
        "location": "europe-west4",
        "max_jobs": 4,
        "shared_limits": [],
        "max_schedulers": 2,
        "secure_mode": True,
        "stop_grace_seconds": 90.0,
        "start_timeout_seconds": None,
    }


def test_the_defaults_are_those_of_wandbs_agent():
    migration = read()
    model = AgentConfig.model_fields
    fields = migration.block_fields("api.wandb.ai", "team")
    assert fields["max_jobs"] == model["max_jobs"].default
    assert fields["max_schedulers"] == model["max_schedulers"].default
    assert fields["secure_mode"] == model["secure_mode"].default
    assert fields["stop_grace_seconds"] == model["stopped_run_timeout"].default


def test_the_jobs_of_several_queues_count_under_one_limit_as_they_did_in_the_agent():
    migration = read(queues=["a", "b"], max_jobs=3)
    fields = migration.block_fields("api.wandb.ai", "team")
    assert (fields["max_jobs"], fields["shared_limits"]) == (-1, ["vertex-launch-shared:api.wandb.ai:team"])
    assert fates(migration)["max_jobs"] is Fate.LIMIT


def test_no_limit_stays_none_with_a_warning_about_quotas():
    migration = read(queues=["a", "b"], max_jobs=-1)
    fields = migration.block_fields("api.wandb.ai", "team")
    assert (fields["max_jobs"], fields["shared_limits"]) == (-1, [])
    assert any("quotas" in warning for warning in migration.warnings)


def keys_of(model: Any) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def test_every_field_of_wandbs_model_has_a_row():
    """Should W&B add a field, this test names it."""
    sections: dict[str, Any] = {
        "environment": GCP,
        "registry": {"type": "gcr", "uri": "us-docker.pkg.dev/p/r/i"},
        "builder": {
            "type": "kaniko",
            "destination": "us-docker.pkg.dev/p/r/i",
            "platform": "linux/amd64",
            "build-context-store": "gs://b/c",
            "build-job-name": "j",
            "secret-name": "n",
            "secret-key": "s",
            "kaniko-image": "k",
        },
    }
    models = {"environment": EnvironmentConfig, "registry": RegistryConfig, "builder": BuilderConfig}
    for section, model in models.items():
        assert set(sections[section]) == keys_of(model)
    migration = read(**sections)
    assert not migration.problems
    expected = keys_of(AgentConfig) - set(models)
    expected |= {f"{section}.{key}" for section, values in sections.items() for key in values}
    assert expected <= set(fates(migration))


def test_what_no_longer_matters_says_why_and_what_builds_says_what_to_do():
    migration = read(builder={"type": "docker", "destination": "us-docker.pkg.dev/p/r/i"}, verbosity=1)
    rows = {row.key: str(row) for row in migration.rows}
    assert not migration.problems
    assert rows["builder.type"].startswith("cannot be moved because images are neither built")
    assert "wandb job create image" in rows["builder.type"]
    assert rows["builder.destination"].startswith("has no meaning here because ")
    assert rows["verbosity"].startswith("has no meaning here because ")


def test_two_grades_of_verbosity_become_prefects_logging_level():
    assert read(verbosity=2).log_level == "DEBUG"
    assert read(verbosity=1).log_level is None


def test_the_environment_overrides_the_file_as_it_does_for_the_agent():
    migration = read({"WANDB_ENTITY": "other", "WANDB_LAUNCH_MAX_JOBS": "7"}, max_jobs="many")
    assert not migration.problems
    assert (migration.entity, migration.max_jobs) == ("other", 7)
    assert fates(migration)["max_jobs"] is Fate.NO_MEANING
    assert fates(migration)["WANDB_LAUNCH_MAX_JOBS"] is Fate.LIMIT


def test_the_region_comes_from_the_environment_only_without_a_section_for_it():
    variable = {"GOOGLE_CLOUD_REGION": "us-east1"}
    assert read(variable).location == "europe-west4"
    assert fates(read(variable))["GOOGLE_CLOUD_REGION"] is Fate.NO_MEANING
    assert read(variable, environment=None).location == "us-east1"


@pytest.mark.parametrize(
    ("value", "seconds"), [("900", 900.0), ("0", None), ("-5", None), ("inf", None), ("", None)]
)
def test_the_start_timeout_is_off_unless_the_agents_variable_sets_one(value: str, seconds: float | None):
    migration = read({"WANDB_LAUNCH_START_TIMEOUT": value})
    assert not migration.problems
    assert migration.start_timeout_seconds == seconds
    assert "WANDB_LAUNCH_START_TIMEOUT" in fates(migration)


def test_the_api_key_is_only_said_to_be_there():
    migration = read({"WANDB_API_KEY": SECRET, "WANDB_BASE_URL": "https://w", "WANDB_AGENT_VERSION": "v"})
    assert SECRET not in repr(migration)
    assert {"WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_AGENT_VERSION"} <= set(fates(migration))


def test_without_an_entity_the_keys_default_one_is_taken():
    migration = read(entity=None)
    assert migration.entity is None
    assert not migration.problems


def test_without_a_queue_the_agent_served_the_default_one():
    assert read(queues=[]).queues == ("default",)


def test_a_queue_of_its_own_is_a_queue_too_and_one_that_is_named_twice_is_one():
    migration = read(queues=["a", "a"], queue="b")
    assert migration.queues == ("a", "b")
    assert any("twice" in warning for warning in migration.warnings)


def test_all_that_is_wrong_is_said_at_once():
    migration = read_agent_config(
        {
            "entity": 7,
            "queues": ["a", 3, ""],
            "max_jobs": [1],
            "max_schedulers": -2,
            "stopped_run_timeout": "soon",
            "secure_mode": "false",
            "verbosity": True,
            "environment": {"type": "aws", "region": 3},
            "registry": ["x"],
            "builder": {"type": "dokcer", "platform": "linux/arm"},
            "maxjobs": 3,
        },
        {"WANDB_LAUNCH_START_TIMEOUT": "soon"},
    )
    assert set(wrong(migration)) == {
        "entity", "queues[1]", "queues[2]", "max_jobs", "max_schedulers", "stopped_run_timeout",
        "secure_mode", "verbosity", "environment.type", "environment.region", "registry", "builder.type",
        "builder.platform",
        "maxjobs", "WANDB_LAUNCH_START_TIMEOUT",
    }  # fmt: skip
    assert {row.key for row in migration.rows if row.fate is Fate.CANNOT_MOVE} == set(wrong(migration))


@pytest.mark.parametrize(
    ("fields", "where", "said"),
    [
        ({"max_job": 3}, "max_job", "Did you mean max_jobs?"),
        ({"builder": {"type": "dokcer"}}, "builder.type", "Did you mean docker?"),
        ({"environment": {"type": "azure", "region": "x"}}, "environment.type", "another cloud"),
        ({"environment": {"type": "gcp"}}, "environment.region", "region: us-central1"),
        ({"environment": {"region": "x"}}, "environment.type", "Write type: gcp"),
        ({"environment": None}, "environment.region", "GOOGLE_CLOUD_REGION"),
        ({"max_jobs": 0}, "max_jobs", "nothing would ever run"),
        ({"queues": "q"}, "queues", "Write queues: [q]."),
        ({"queues": None}, "queues", "a list"),
        ({"secure_mode": "false"}, "secure_mode", "also 'false'"),
    ],
)
def test_what_cannot_be_read_is_named_with_a_way_out(fields: dict[str, Any], where: str, said: str):
    [problem] = read(**fields).problems
    assert problem.where == where
    assert said in str(problem)


@pytest.mark.parametrize("config", ["text", [1], 3, {1: 2}, {"entity": float("nan")}])
def test_what_is_no_configuration_at_all_is_a_finding(config: object):
    assert read_agent_config(config, {}).problems


def test_an_overlooked_key_of_a_section_is_named_as_it_should_be_spelled():
    migration = read(builder={"type": "noop", "build_context_store": "gs://b"})
    assert not migration.problems
    assert any("build-context-store" in warning for warning in migration.warnings)


def test_the_value_of_a_key_that_nobody_knows_is_not_shown():
    assert SECRET not in repr(read(api_key=SECRET, builder={"password": SECRET}))


NAMES = st.sampled_from([*AgentConfig.model_fields, "queue", "type", "region", "nonsense"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_any_file_is_read_and_none_that_wandb_refuses_passes_in_silence(config: dict[str, Any]):
    migration = read_agent_config(config, {})
    try:
        AgentConfig(**{"entity": None, **config})
    except (ValidationError, ValueError, TypeError):
        # Older agents took the key `queue`, and so do we.
        assert migration.problems or migration.warnings or "queue" in config


def review(config: dict[str, Any], **options: Any) -> Any:
    whole = {"resource_args": {"gcp-vertex": config}}
    return review_queue(whole, **{"resource": "gcp-vertex", "where": "queue", **options})


def test_a_plain_queue_works_as_it_did():
    assert review({"spec": SPEC, "run": {"timeout": 60}}) == review_queue(
        {"resource_args": {"vertex": {"spec": SPEC}}}, resource="vertex", where="queue"
    )
    assert not review({"spec": SPEC, "run": {"sync": True, "network": None}}).changes


def test_what_the_agent_dropped_and_is_honoured_now_is_listed():
    spec = {**SPEC, "persistent_resource_id": "pr", "display_name": "d", "service_account": "a@b.iam.c"}
    run = {"scheduling_strategy": "SPOT", "max_wait_duration": 60, "disable_retries": True, "timeout": 9}
    changes = " ".join(review({"spec": spec, "run": run}).changes)
    for path in (
        "queue.spec.persistent_resource_id", "queue.spec.display_name", "queue.spec.service_account",
        "queue.run.scheduling_strategy", "queue.run.max_wait_duration", "queue.run.disable_retries",
    ):  # fmt: skip
        assert f"{path}: W&B's agent dropped it" in changes
    assert "timeout" not in changes
    assert "staging_bucket" not in changes


def test_a_command_arguments_and_an_image_of_its_own_behave_otherwise():
    container = {"image_uri": "gcr.io/reducer", "command": ["run"], "args": ["--x"]}
    other = {**POOL, "container_spec": container}
    changes = review({"spec": {**SPEC, "worker_pool_specs": [POOL, other]}}).changes
    assert [change.split(":")[0].rsplit(".", 1)[-1] for change in changes] == ["command", "args", "image_uri"]
    assert all("worker_pool_specs[1]" in change for change in changes)


def test_variables_of_the_agent_are_named_with_their_places_and_launch_macros_are_not():
    pool = {**POOL, "container_spec": {"image_uri": "${image_uri}", "args": ["${TEAM}", "${run_id}"]}}
    found = review({"spec": {**SPEC, "worker_pool_specs": [pool], "labels": {"l": "${OTHER}"}}}).macros
    assert {(macro.name, macro.path.rsplit(".", 2)[-1]) for macro in found} == {
        ("TEAM", "args[0]"),
        ("OTHER", "l"),
    }


def test_a_queue_of_another_kind_is_refused_with_the_reason():
    [problem] = review_queue({}, resource="kubernetes", where="queue t/q").problems
    assert "kubernetes" in str(problem)
    assert "gcp-vertex" in str(problem)


def test_a_configuration_that_would_be_refused_is_said_now():
    problems = review({"spec": {**SPEC, "labells": {}}, "run": {"timeout": "1h"}}).problems
    assert [problem.where for problem in problems] == ["queue.spec.labells", "queue.run.timeout"]


def test_a_bucket_of_the_block_stands_in_for_one_that_is_missing():
    config = {"spec": {"worker_pool_specs": [POOL]}}
    assert [problem.where for problem in review(config).problems] == ["queue.spec.staging_bucket"]
    assert not review(config, staging_bucket="gs://bucket").problems


def test_template_variables_may_stand_for_any_value():
    pool = {**POOL, "machine_spec": {"machine_type": "{{machine}}", "accelerator_count": "{{ count }}"}}
    found = review({"spec": {**SPEC, "worker_pool_specs": [pool]}})
    assert (found.problems, found.macros) == ((), ())


def test_a_queue_without_a_configuration_leaves_it_to_the_runs():
    found = review_queue(None, resource="gcp-vertex", where="queue")
    assert not found.problems
    assert "no configuration" in found.changes[0]
