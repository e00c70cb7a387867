"""A launch becomes a CustomJob: entry point, arguments, labels, names, and what is kept secret."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from prefect_vertex_launch.core.labels import (
    ATTEMPT_LABEL,
    ITEM_LABEL,
    QUEUE_LABEL,
    RUN_ID_LABEL,
)
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from prefect_vertex_launch.jobspec.environment import launch_environment
from prefect_vertex_launch.jobspec.render import render
from prefect_vertex_launch.sandbox.vertex.validation import job_errors
from tests.unit.rendered_launch import (
    IMAGE,
    KEY,
    POOL,
    env_of,
    launch,
    launch_context,
    pool,
    read_run_spec,
    refused,
    task_of,
)

# Entry point and arguments


@pytest.mark.parametrize(
    ("queue", "overrides", "of_job", "command", "args"),
    [
        ({}, {}, (), [], []),
        ({}, {"args": ["--lr", 1]}, (), [], ["--lr", "1"]),
        ({"command": ["q"], "args": ["a"]}, {}, (), ["q"], ["a"]),
        ({"command": ["q"], "args": ["a"]}, {"args": ["b"]}, (), ["q"], ["b"]),
        ({"command": ["q"], "args": ["a"]}, {"entry_point": ["e"]}, (), ["e"], ["a"]),
        ({"command": ["q"]}, {"entry_point": ["e"]}, ("j",), ["e"], []),
        ({"command": ["q"]}, {}, ("j",), ["q"], []),
        ({"command": []}, {}, ("python", "train.py"), ["python", "train.py"], []),
        ({}, {"entry_point": [], "args": ["b"]}, ("j",), ["j"], ["b"]),
    ],
)
def test_command_and_args(
    queue: dict[str, Any],
    overrides: dict[str, Any],
    of_job: tuple[str, ...],
    command: list[str],
    args: list[str],
) -> None:
    rendering = launch(pool(**queue), item={"overrides": overrides}, job_entry_point=of_job)
    assert (list(task_of(rendering).command), list(task_of(rendering).args)) == (command, args)
    assert bool(rendering.warnings) is (command == ["q"] and bool(of_job))


def test_arguments_of_a_launch_are_not_macros() -> None:
    rendering = launch(item={"overrides": {"args": ["${run_id}"]}})
    assert list(task_of(rendering).args) == ["${run_id}"]
    assert rendering.warnings == ()


def test_pools_with_another_image_are_left_alone() -> None:
    reduction = pool(
        "us-docker.pkg.dev/p/r/reduction:1", command=["reduce"], env=[{"name": "A", "value": "1"}]
    )
    rendering = launch(
        pool(), pool(IMAGE), {}, reduction, item={"overrides": {"args": ["x"], "entry_point": ["y"]}}
    )
    assert env_of(rendering, 3) == {"A": "1"}
    assert list(task_of(rendering, 3).command) == ["reduce"]
    assert not task_of(rendering, 3).args
    for index in (0, 1):
        assert env_of(rendering, index)["WANDB_PROJECT"] == "P1"
        assert list(task_of(rendering, index).args) == ["x"]


def test_a_launch_whose_image_nobody_runs_is_a_warning() -> None:
    rendering = launch(pool("other:1"))
    assert "no worker pool runs the launch's image" in rendering.warnings[0]


def test_a_python_package_in_the_launchs_image_gets_arguments_but_no_command() -> None:
    package = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "python_package_spec": {
            "executor_image_uri": "${image_uri}", "package_uris": ["gs://b/p.tar.gz"], "python_module": "m",
        },
    }  # fmt: skip
    rendering = launch(package, item={"overrides": {"args": ["x"], "entry_point": ["y"]}})
    task = rendering.job.job_spec.worker_pool_specs[0].python_package_spec
    assert list(task.args) == ["x"]
    assert "WANDB_RUN_ID" in {variable.name for variable in task.env}
    assert "no command" in rendering.warnings[0]


@pytest.mark.parametrize("second", [None, 0, 1, 3])
@pytest.mark.parametrize("first", [None, 0, 1, 2])
def test_the_number_of_replicas_gets_one_verdict_here_and_at_vertex_ai(first: Any, second: Any) -> None:
    pools = [pool(IMAGE, count=count) for count in (first, second)]
    job = CustomJob(display_name="job", job_spec={"worker_pool_specs": pools})
    wrong = [path for path, _message in job_errors(CustomJob.pb(job))]
    if wrong:
        assert list(refused(*pools)) == [
            f"resource_args.vertex.{path.removeprefix('job_')}" for path in wrong
        ]
    else:
        assert launch(*pools)


# Environment


def test_the_launchs_variables_come_after_the_queues_own() -> None:
    rendering = launch(pool(env=[{"name": "A", "value": "1"}]))
    assert list(env_of(rendering).items()) == [
        ("A", "1"),
        *launch_environment(read_run_spec(), launch_context()).items(),
    ]


def test_the_launchs_variable_wins_and_says_so() -> None:
    rendering = launch(
        pool(env=[{"name": "WANDB_PROJECT", "value": "mine"}, {"name": "WANDB_NAME", "value": "n"}])
    )
    names = [variable.name for variable in task_of(rendering).env]
    assert env_of(rendering)["WANDB_PROJECT"] == "P1"
    assert names.count("WANDB_PROJECT") == 1
    assert env_of(rendering)["WANDB_NAME"] == "n"  # this launch has no name
    (warning,) = rendering.warnings
    assert "WANDB_PROJECT is set by the launch" in warning


def test_too_many_variables_together_are_refused() -> None:
    env = [{"name": f"A{number}", "value": ""} for number in range(95)]
    assert list(refused(pool(env=env))) == [f"{POOL}.container_spec.env"]


# Labels, names, places


def test_a_job_is_labelled_with_item_run_queue_and_attempt() -> None:
    labels = launch(spec={"labels": {"team": "a"}}, run_id="My.Run", attempt=3).job.labels
    assert dict(labels) == {
        "team": "a",
        RUN_ID_LABEL: "my_run",
        ITEM_LABEL: launch_context().queue.item_key("item-1"),
        QUEUE_LABEL: launch_context().queue.key,
        ATTEMPT_LABEL: "3",
    }


def test_a_label_that_was_changed_is_said_with_its_path() -> None:
    rendering = launch(spec={"labels": {"team": "A B"}})
    assert rendering.warnings[0].startswith("resource_args.vertex.spec.labels.team: the value became 'a_b'")


@pytest.mark.parametrize(
    ("own", "run_name", "shown"),
    [
        ("mine", "bright-sun", "mine"),
        (None, "bright-sun", "bright-sun"),
        (None, None, "run1"),
        ("", None, "run1"),
    ],
)
def test_the_display_name_is_the_queues_else_the_runs_else_its_id(
    own: Any, run_name: Any, shown: str
) -> None:
    assert launch(spec={"display_name": own}, item={"name": run_name}).job.display_name == shown


def test_a_long_display_name_is_cut_with_a_warning() -> None:
    rendering = launch(item={"name": "ü" * 200})
    assert rendering.job.display_name == "ü" * 128
    assert rendering.warnings == ("name: cut to 128 characters for the job's display name",)


def test_the_output_directory_is_the_same_for_every_attempt_of_an_item() -> None:
    def directory(**context: Any) -> str:
        rendering = launch(spec={"staging_bucket": "gs://my-bucket/sub/"}, **context)
        return rendering.job.job_spec.base_output_directory.output_uri_prefix

    assert (
        directory()
        == directory(attempt=2)
        == f"gs://my-bucket/sub/vertex-launch/{launch_context().queue.item_key('item-1')}"
    )
    assert directory(item_id="item-2") != directory()


def test_project_and_location_may_repeat_the_blocks() -> None:
    rendering = launch(spec={"project": "my-project", "location": "us-central1"})
    assert rendering.parent == "projects/my-project/locations/us-central1"


def test_another_project_or_location_is_refused() -> None:
    found = refused(spec={"project": "other", "location": "europe-west4"})
    assert set(found) == {"resource_args.vertex.spec.project", "resource_args.vertex.spec.location"}


@pytest.mark.parametrize(
    ("section", "name", "resource"),
    [
        ("spec", "encryption_spec_key_name", "keyRings/r/cryptoKeys/k"),
        ("run", "tensorboard", "tensorboards/1"),
        ("run", "experiment", "metadataStores/default/contexts/e"),
    ],
)
def test_a_resource_of_another_region_is_a_warning(section: str, name: str, resource: str) -> None:
    def warnings(location: str) -> tuple[str, ...]:
        arguments: dict[str, Any] = {"spec": {}, "run": {"service_account": "a@p.iam.gserviceaccount.com"}}
        arguments[section][name] = f"projects/p/locations/{location}/{resource}"
        return launch(**arguments).warnings

    assert f"resource_args.vertex.{section}.{name}: the" in warnings("europe-west4")[0]
    assert "is not in us-central1" in warnings("europe-west4")[0]
    assert warnings("us-central1") == ()


def test_artifacts_that_are_kept_where_the_job_runs_need_no_location() -> None:
    (warning,) = launch(run={"protected_artifact_location_id": "us-central1"}).warnings
    assert "kept elsewhere" in warning
    assert launch(run={"protected_artifact_location_id": "us-east1"}).warnings == ()


def test_an_experiment_and_its_run_go_by_their_full_names() -> None:
    home = "projects/my-project/locations/us-central1/metadataStores/default/contexts"
    run = {"experiment": "e1", "service_account": "a@p.iam.gserviceaccount.com"}
    for experiment, experiment_run in itertools.product(("e1", f"{home}/e1"), ("r1", f"{home}/e1-r1")):
        job = launch(run={**run, "experiment": experiment, "experiment_run": experiment_run}).job.job_spec
        assert (job.experiment, job.experiment_run) == (f"{home}/e1", f"{home}/e1-r1")
    found = refused(run={**run, "experiment_run": f"{home}/e2-r1"})
    assert "is not a run of" in found["resource_args.vertex.run.experiment_run"]


def test_warnings_of_the_run_spec_come_along_and_those_of_the_queue_only_once() -> None:
    rendering = launch(run={"sync": True}, item={"zzz": 1})
    assert rendering.warnings == ("zzz: not known here; it has no effect",)


# The whole


def test_the_same_inputs_give_the_same_job() -> None:
    config = parse_queue_config({"spec": {"worker_pool_specs": [pool()], "staging_bucket": "gs://my-bucket"}})
    first = render(read_run_spec(), config, launch_context())
    assert render(read_run_spec(), config, launch_context()).job == first.job
    assert config.spec["worker_pool_specs"] == [pool()]


def test_all_problems_of_a_rendering_come_at_once() -> None:
    found = refused(
        pool(count="${n}"), spec={"labels": {"a": "${nope}"}, "project": "other"}, macros={"n": "x"}
    )
    assert set(found) == {
        f"{POOL}.replica_count", "resource_args.vertex.spec.labels.a", "resource_args.vertex.spec.project",
    }  # fmt: skip


def test_secrets_are_masked_wherever_they_stand() -> None:
    rendering = launch(
        pool(
            args=["--token=${HF_TOKEN}", "--db", "pa55word-of-db"],
            env=[{"name": "DB_PASSWORD", "value": "pa55word-of-db"}, {"name": "PLAIN", "value": "seen"}],
        ),
        macros={"HF_TOKEN": "hf-t0ken-value"},
    )
    text = json.dumps(rendering.redacted())
    for secret in (KEY, "hf-t0ken-value", "pa55word-of-db"):
        assert secret not in text
        assert secret not in repr(rendering)
    assert "seen" in text
    assert task_of(rendering).args[0] == "--token=hf-t0ken-value"
    assert rendering.redacted()["job_spec"]["worker_pool_specs"][0]["container_spec"]["image_uri"] == IMAGE


def test_a_secret_is_masked_in_the_form_that_it_has_in_a_variable() -> None:
    secret = "a$(b)$$c-t0ken"
    rendering = launch(pool(env=[{"name": "PLAIN", "value": "is ${A_TOKEN}"}]), macros={"A_TOKEN": secret})
    assert env_of(rendering)["PLAIN"] == "is a$$(b)$$$$c-t0ken"
    assert "t0ken" not in json.dumps(rendering.redacted())


def test_secrets_are_masked_in_problems_and_warnings() -> None:
    for token in ("t0ken-value", "t0ken-value-of-a-hundred-characters" * 3):
        found = refused(pool(count="${MY_TOKEN}"), run={"network": "${MY_TOKEN}"}, macros={"MY_TOKEN": token})
        assert len(found) == 2
        assert "t0ken" not in str(found)
    macros = {"MY_TOKEN": "T0KEN VALUE"}
    rendering = launch({**pool(), "disk_spec": {"boot_disk_type": "${MY_TOKEN}"}}, macros=macros)
    assert "is none of" in str(rendering.warnings)
    assert "t0ken" not in str(rendering.warnings).lower()
    assert "t0ken" not in str(refused(spec={"labels": {"a": "${MY_TOKEN}"}}, macros=macros)).lower()
    assert KEY not in repr(launch_context())
    assert "t0ken" not in repr(launch_context(macros={"MY_TOKEN": "t0ken-value"}))
