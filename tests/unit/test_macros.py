"""Macros of a queue's configuration: where they are filled in, from what, and what may come of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from prefect_vertex_launch.core.json_value import MAX_JOB_BYTES
from prefect_vertex_launch.jobspec import filled_config
from tests.unit.rendered_launch import IMAGE, KEY, POOL, env_of, launch, pool, refused, task_of


def test_every_macro_of_a_launch_is_filled_in() -> None:
    text = "${image_uri} ${project_name} ${entity_name} ${run_id} ${run_name} ${author}"
    rendering = launch(pool(args=[text]), item={"name": "bright-sun", "author": "alice"})
    assert task_of(rendering).args == [f"{IMAGE} P1 acme run1 bright-sun alice"]
    assert rendering.warnings == ()


def test_what_a_run_does_not_have_never_becomes_the_word_none() -> None:
    assert task_of(launch(pool(args=["${run_name}", "<${author}>"]))).args == ["run1", "<>"]


def test_macros_are_filled_in_every_leaf_but_not_in_keys() -> None:
    rendering = launch(
        pool(env=[{"name": "A", "value": "${run_id}"}]),
        spec={
            "labels": {"owner": "${author}"},
            "base_output_dir": "gs://my-bucket/${run_id}",
            "display_name": "job of ${author}",
        },
        run={"service_account": "${account}", "network": "projects/1/global/networks/${net}"},
        item={"author": "alice"},
        macros={"account": "a@p.iam.gserviceaccount.com", "net": "n"},
    )
    job = rendering.job
    assert env_of(rendering)["A"] == "run1"
    assert job.labels["owner"] == "alice"
    assert job.display_name == "job of alice"
    assert job.job_spec.base_output_directory.output_uri_prefix == "gs://my-bucket/run1"
    assert job.job_spec.service_account == "a@p.iam.gserviceaccount.com"
    assert job.job_spec.network == "projects/1/global/networks/n"


def test_the_environment_of_this_process_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_SECRET", "s3cr3t")
    monkeypatch.setenv("run_id", "from-the-host")
    rendering = launch(pool(args=["${HOST_SECRET} ${run_id}"]))
    assert task_of(rendering).args == ["${HOST_SECRET} run1"]


def test_an_allowed_name_never_hides_a_macro_of_the_launch() -> None:
    assert task_of(launch(pool(args=["${run_id}"]), macros={"run_id": "x"})).args == ["run1"]


@pytest.mark.parametrize("field", ["command", "args"])
def test_an_unknown_macro_stays_for_the_shell_with_a_warning(field: str) -> None:
    rendering = launch(pool(**{field: ["sh", "-c", "echo ${HOME}"]}))
    assert list(getattr(task_of(rendering), field)) == ["sh", "-c", "echo ${HOME}"]
    (warning,) = rendering.warnings
    assert warning.startswith(f"{POOL}.container_spec.{field}[2]: ${{HOME}}")


def test_an_unknown_macro_in_a_variable_stays_too() -> None:
    rendering = launch(pool(env=[{"name": "A", "value": "${HOME}/x"}]))
    assert env_of(rendering)["A"] == "${HOME}/x"
    assert len(rendering.warnings) == 1


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"labels": {"a": "${nope}"}}, "labels.a"),
        ({"staging_bucket": "gs://${nope}"}, "staging_bucket"),
        ({"display_name": "${nope}"}, "display_name"),
        ({"worker_pool_specs": [pool("${nope}")]}, "worker_pool_specs[0].container_spec.image_uri"),
    ],
)
def test_an_unknown_macro_elsewhere_is_refused_and_the_known_ones_named(
    spec: dict[str, Any], where: str
) -> None:
    found = refused(spec=spec, macros={"ALLOWED": "x"})
    text = found[f"resource_args.vertex.spec.{where}"]
    assert "${nope}" in text
    assert "run_name" in text
    assert "ALLOWED" in text


def test_nothing_is_expanded_twice() -> None:
    rendering = launch(pool(args=["${run_name}"]), item={"name": "${author} ${image_uri}", "author": "x"})
    assert task_of(rendering).args == ["${author} ${image_uri}"]


def test_what_a_macro_brings_into_a_variable_is_no_reference_to_another() -> None:
    rendering = launch(
        pool(env=[{"name": "A", "value": "${run_name} $(B)"}]), item={"name": "$(WANDB_API_KEY)"}
    )
    assert env_of(rendering)["A"] == "$$(WANDB_API_KEY) $(B)"


def test_a_dollar_of_the_queue_does_not_make_a_reference_of_what_a_macro_brings() -> None:
    env = [{"name": "PRICE", "value": "$${run_name}"}, {"name": "PLAIN", "value": "$(B)${run_name}"}]
    rendering = launch(pool(env=env), item={"name": "(WANDB_API_KEY)"})
    assert env_of(rendering)["PRICE"] == "$$(WANDB_API_KEY)"
    assert env_of(rendering)["PLAIN"] == "$(B)(WANDB_API_KEY)"


def test_macros_are_filled_in_the_names_of_variables() -> None:
    env = [{"name": "${team}_KEY", "value": "${team}"}, {"name": "${prefix}_NAME", "value": "mine"}]
    rendering = launch(
        pool(env=env), macros={"team": "VISION", "prefix": "WANDB"}, item={"name": "bright-sun"}
    )
    assert env_of(rendering)["VISION_KEY"] == "VISION"
    assert env_of(rendering)["WANDB_NAME"] == "bright-sun"
    names = [variable.name for variable in task_of(rendering).env]
    assert names.count("WANDB_NAME") == 1
    (warning,) = rendering.warnings
    assert warning.startswith(f"{POOL}.container_spec.env[1]: WANDB_NAME is set by the launch")


@pytest.mark.parametrize(
    ("names", "index", "words"),
    [
        (["${run_name}"], 0, "'bright-sun' is not a valid name"),
        (["${author}"], 0, "missing"),
        (["${again}"], 0, "'${n}' is not a valid name"),
        (["A${n}", "A1", "B"], 1, "'A1' is there twice (the first is env[0])"),
        (["A1", "B", "A${n}"], 2, "'A1' is there twice (the first is env[0])"),
        (["${nope}"], 0, "${nope} is not a known macro"),
        (["${dollar}"], 0, "'$(A)' is not a valid name"),
    ],
)
def test_the_filled_name_of_a_variable_is_checked(names: list[str], index: int, words: str) -> None:
    env = [{"name": name, "value": ""} for name in names]
    found = refused(
        pool(env=env), macros={"n": "1", "again": "${n}", "dollar": "$(A)"}, item={"name": "bright-sun"}
    )
    assert list(found) == [f"{POOL}.container_spec.env[{index}].name"]
    assert words in found[f"{POOL}.container_spec.env[{index}].name"]


def test_an_allowed_macro_that_the_worker_does_not_have_is_said_to_be_unset() -> None:
    macros = {"TEAM_BUCKET": None, "TEAM": "vision"}
    found = refused(spec={"staging_bucket": "gs://${TEAM_BUCKET}", "labels": {"a": "${NOPE}"}}, macros=macros)
    assert found["resource_args.vertex.spec.staging_bucket"] == (
        "resource_args.vertex.spec.staging_bucket: ${TEAM_BUCKET} is allowed, but not set in the worker's "
        "environment (a macro of the block's allow-list is a variable of the worker). "
        "Set TEAM_BUCKET where the worker runs."
    )
    unknown = found["resource_args.vertex.spec.labels.a"]
    assert "Use one of" in unknown
    assert "TEAM," in unknown
    assert "TEAM_BUCKET" not in unknown
    rendering = launch(pool(args=["${TEAM_BUCKET}"]), macros=macros)
    assert task_of(rendering).args == ["${TEAM_BUCKET}"]
    (warning,) = rendering.warnings
    assert "allowed, but not set in the worker's environment" in warning


def test_the_block_hands_on_the_allowed_macros_that_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_vertex_launch.blocks.gcp_credentials import GcpCredentials
    from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
    from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
    from prefect_vertex_launch.sandbox.google.service_account import private_key, service_account_info

    monkeypatch.setenv("TEAM", "vision")
    monkeypatch.setenv("OTHER", "x")
    monkeypatch.delenv("TEAM_BUCKET", raising=False)
    block = VertexLaunchQueue(
        entity="acme",
        queue="gpu",
        project="my-project",
        wandb_credentials=WandbCredentials(api_key=SecretStr(KEY)),
        gcp_credentials=GcpCredentials(
            service_account_info=service_account_info(
                "my-project", private_key(), "https://example.com/token"
            )
        ),
        allowed_macros=["TEAM", "TEAM_BUCKET"],
    )
    assert block.macros() == {"TEAM": "vision", "TEAM_BUCKET": None}
    (text,) = refused(spec={"staging_bucket": "gs://${TEAM_BUCKET}"}, macros=block.macros()).values()
    assert "allowed, but not set" in text


def test_an_unset_macro_never_hides_one_of_the_launch() -> None:
    assert task_of(launch(pool(args=["${run_id}"]), macros={"run_id": None})).args == ["run1"]


def test_a_leaf_that_is_one_macro_becomes_a_number_where_one_belongs() -> None:
    rendering = launch(
        pool(count="${n}", env=[{"name": "N", "value": "${n}"}]),
        pool(count="${workers}"),
        spec={},
        run={"timeout": "${seconds}", "create_request_timeout": "${call}", "disable_retries": "${flag}",
             "scheduling_strategy": "${strategy}"},
        macros={"n": "1", "workers": "4", "seconds": "3600", "call": "2.5", "flag": "true",
                "strategy": "SPOT"},
    )  # fmt: skip
    spec = rendering.job.job_spec
    assert [pool.replica_count for pool in spec.worker_pool_specs] == [1, 4]
    assert env_of(rendering)["N"] == "1"
    assert spec.scheduling.timeout.total_seconds() == 3600
    assert rendering.create_timeout_seconds == 2.5
    assert spec.scheduling.disable_retries is True
    assert spec.scheduling.strategy.name == "SPOT"


@pytest.mark.parametrize("value", ["two", "1.5", "", "1 2", "9" * 5000])
def test_a_macro_that_brings_no_number_is_refused(value: str) -> None:
    assert list(refused(pool(count="${n}"), macros={"n": value})) == [f"{POOL}.replica_count"]


def test_rules_that_waited_for_macros_are_checked() -> None:
    found = refused(
        {
            **pool(),
            "machine_spec": {"machine_type": "${m}", "accelerator_type": "${a}", "accelerator_count": 3},
        },
        spec={"staging_bucket": "${b}"},
        macros={"m": "a2-highgpu-1g", "a": "NVIDIA_TESLA_A100", "b": "no-scheme"},
    )
    assert set(found) == {
        f"{POOL}.machine_spec.accelerator_count",
        "resource_args.vertex.spec.staging_bucket",
    }


def test_a_macro_value_that_is_not_text_is_refused() -> None:
    assert list(refused(pool(args=["${x}"]), macros={"x": "\udcff"})) == ["${x}"]


# --- sizes once the macros are filled in


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many characters each text has that is made of parts."""
    lengths: list[int] = []

    def counted(parts: Any, _brought: Any) -> str:
        lengths.append(sum(len(part) for part in parts))
        assert sum(lengths) <= MAX_JOB_BYTES
        return "".join(parts)

    monkeypatch.setattr(filled_config, "join_literally", counted)
    return lengths


MANY = "${author}" * 20_000


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"args": [MANY]}, "args[0]"),
        ({"args": ["${author}"] * 20_000}, "args["),
        ({"env": [{"name": "A", "value": MANY}]}, "env[0].value"),
        ({"env": [{"name": f"A{n}", "value": "${author}" * 500} for n in range(80)]}, "env["),
        ({"image_uri": MANY}, "image_uri"),
    ],
)
def test_filling_stops_before_a_job_is_too_large(made: list[int], given: Any, where: str) -> None:
    task = pool()
    task["container_spec"].update(given)
    (found,) = refused(task, item={"author": "x" * 30_000}).items()
    assert found[0].startswith(f"{POOL}.container_spec.{where}")
    assert "with its macros filled in" in found[1]
    assert sum(made) <= MAX_JOB_BYTES


def test_the_labels_and_names_of_a_job_are_counted_as_well() -> None:
    spec = {"labels": {f"a{n}": "${author}" * 10 for n in range(50)}, "display_name": "${author}"}
    assert "with its macros filled in" in str(refused(spec=spec, item={"author": "x" * 300_000}))


def test_a_megabyte_of_filled_text_is_taken() -> None:
    assert (
        len(task_of(launch(pool(args=["${author}" * 10]), item={"author": "x" * 100_000})).args[0]) == 10**6
    )


def test_what_a_launch_adds_to_every_pool_is_counted() -> None:
    item = {"overrides": {"run_config": {"a": "$$" * 100_000}}}
    assert launch(item=item)
    found = refused(*[pool()] * 4, item=item)
    assert list(found) == ["the whole job"]
    assert "KiB, with what the launch adds" in found["the whole job"]
