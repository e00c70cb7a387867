"""A run spec is read as a whole: every JSON value gives a RunSpec or all of its problems with their paths."""

from __future__ import annotations

import string
from typing import Any

import pytest

from prefect_vertex_launch.core.errors import InvalidRunSpec
from prefect_vertex_launch.core.json_value import MAX_SPEC_BYTES
from prefect_vertex_launch.jobspec.run_spec import RunSpec, derive_run_id, parse_run_spec

# What `wandb launch --docker-image img:1 --queue q --entity acme --project p1` leaves in a queue.
PUSHED: dict[str, Any] = {
    "entity": "acme",
    "project": "p1",
    "docker": {"docker_image": "img:1"},
    "resource": "gcp-vertex",
    "git": {},
    "overrides": {"args": ["--lr", "0.1"]},
    "resource_args": {"gcp-vertex": {"spec": {}, "run": {}}},
    "author": "alice",
}


def parse(**changes: Any) -> RunSpec:
    return parse_run_spec({**PUSHED, **changes}, item_id="item-1")


def problems(payload: object) -> dict[str, str]:
    with pytest.raises(InvalidRunSpec) as caught:
        parse_run_spec(payload, item_id="item-1")
    assert all(problem.fix or problem.why == "it is not JSON" for problem in caught.value.problems)
    return {problem.where: str(problem) for problem in caught.value.problems}


def refused(**changes: Any) -> dict[str, str]:
    return problems({**PUSHED, **changes})


def test_an_item_of_the_command_line_is_read() -> None:
    spec = parse()
    assert (spec.entity, spec.project, spec.image_uri, spec.job) == ("acme", "p1", "img:1", None)
    assert (spec.author, spec.run_name, spec.run_id, spec.resume_count) == ("alice", None, None, 0)
    assert spec.overrides.args == ("--lr", "0.1")
    assert spec.resource == "gcp-vertex"
    assert spec.resource_args == {"spec": {}, "run": {}}
    assert spec.warnings == ()


def test_the_project_keeps_its_capitals() -> None:
    assert parse(project="MyProj").project == "MyProj"


def test_an_image_may_stand_at_the_top_level() -> None:
    assert parse(docker={}, image_uri="img:2").image_uri == "img:2"


def test_two_different_images_are_refused() -> None:
    assert list(refused(image_uri="img:2")) == ["image_uri"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("e/p/train:v3", "e/p/train:v3"),
        ("e/p/train", "e/p/train:latest"),
        ("other/train:v1", "acme/other/train:v1"),
        ("train:v1", "acme/p1/train:v1"),
    ],
)
def test_a_job_is_completed_to_entity_project_name_and_alias(written: str, read: str) -> None:
    assert parse(docker={}, job=written).job == read


@pytest.mark.parametrize("job", ["a/b/c/d:v1", "e//n:v1", "e/p/:v1", "e/p/n:a/b", "with space:v1", ":v1"])
def test_what_names_no_job_is_refused(job: str) -> None:
    assert list(refused(docker={}, job=job)) == ["job"]


@pytest.mark.parametrize("docker", [{}, None, {"docker_image": None}, {"docker_image": ""}])
def test_neither_image_nor_job_is_refused(docker: Any) -> None:
    assert "neither" in refused(docker=docker)["docker.docker_image, job"]


def test_both_image_and_job_are_refused() -> None:
    assert "both" in refused(job="e/p/n:v1")["docker.docker_image, job"]


@pytest.mark.parametrize("missing", [None, ""])
def test_entity_and_project_are_required(missing: Any) -> None:
    found = refused(entity=missing, project=missing)
    assert list(found) == ["entity", "project"]


def test_all_problems_come_at_once() -> None:
    found = refused(
        entity=None, docker={"docker_image": 5}, overrides={"args": "x", "run_config": []}, author=1
    )
    assert set(found) == {"entity", "docker.docker_image", "overrides.args", "overrides.run_config", "author"}


@pytest.mark.parametrize(
    "resource", ["local-process", "local-container", "kubernetes", "sagemaker", "Vertex"]
)
def test_another_resource_is_refused(resource: str) -> None:
    assert "never runs anything on its own host" in refused(resource=resource)["resource"]


@pytest.mark.parametrize("resource", ["vertex", "gcp-vertex", None])
def test_both_names_of_vertex_are_taken(resource: str | None) -> None:
    assert parse(resource=resource).resource == "gcp-vertex"  # where its arguments stand


def test_vertex_wins_over_gcp_vertex_and_says_so() -> None:
    spec = parse(resource_args={"gcp-vertex": {"run": {}}, "vertex": {"spec": {}}})
    assert (spec.resource, spec.resource_args) == ("vertex", {"spec": {}})
    assert "gcp-vertex" in spec.warnings[0]


@pytest.mark.parametrize("resource_args", [None, {}, {"gcp-vertex": None}])
def test_an_item_may_have_no_arguments_of_its_own(resource_args: Any) -> None:
    assert not parse(resource_args=resource_args).resource_args


def test_arguments_of_another_resource_are_refused() -> None:
    found = refused(resource_args={"kubernetes": {}, "spec": {}})
    assert set(found) == {"resource_args.kubernetes", "resource_args.spec"}


def test_numbers_among_the_arguments_become_text() -> None:
    assert parse(overrides={"args": ["--lr", 0.1, 3, 1e-5]}).overrides.args == ("--lr", "0.1", "3", "1e-05")


@pytest.mark.parametrize("word", [True, None, {}, [], "a\0b"])
def test_other_arguments_are_refused_with_their_index(word: Any) -> None:
    assert list(refused(overrides={"args": ["ok", word]})) == ["overrides.args[1]"]


def test_a_text_instead_of_a_list_of_words_is_refused() -> None:
    found = refused(overrides={"args": "--lr 1", "entry_point": "python train.py"})
    assert "one list item per word" in found["overrides.args"]
    assert set(found) == {"overrides.args", "overrides.entry_point"}


@pytest.mark.parametrize("key", ["run_config", "artifacts", "files"])
def test_overrides_that_are_objects_must_be_objects(key: str) -> None:
    assert list(refused(overrides={key: ["a"]})) == [f"overrides.{key}"]
    assert parse(overrides={key: None}).overrides.run_config == {}


@pytest.mark.parametrize(
    "run_id", ["a/b", "a:b", "a#b", "a?b", "a,b", "a;b", "it's", " a", "a ", "x" * 129, 5]
)
def test_a_run_id_that_wandb_would_refuse_is_refused(run_id: Any) -> None:
    assert list(refused(run_id=run_id)) == ["run_id"]


def test_a_good_run_id_is_kept() -> None:
    assert parse(run_id="My.Run-ID_1").run_id == "My.Run-ID_1"


@pytest.mark.parametrize("count", [-1, 1.5, True, "1"])
def test_a_resume_count_is_a_whole_number(count: Any) -> None:
    assert list(refused(_resume_count=count)) == ["_resume_count"]


def test_sweeps_and_resumptions_are_read() -> None:
    spec = parse(sweep_id="sw1", _resume_count=2, name="bright-sun")
    assert (spec.sweep_id, spec.resume_count, spec.run_name) == ("sw1", 2, "bright-sun")


def test_a_run_is_no_sweep_scheduler() -> None:
    spec = parse(sweep_id="sw1")
    assert not spec.is_scheduler
    assert spec.scheduled_sweep is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uri", "https://github.com/acme/code"),
        ("git", {"repo": "https://github.com/acme/code"}),
        ("builder", {"type": "kaniko"}),
        ("registry", {"url": "reg"}),
        ("python_version", "3.12"),
        ("overrides", {"dockerfile": "Dockerfile"}),
        ("overrides", {"working_dir": "src"}),
    ],
)
def test_what_would_need_a_build_is_refused(key: str, value: Any) -> None:
    (where,) = refused(**{key: value})
    assert where.startswith(key)


@pytest.mark.parametrize("key", ["git", "builder", "registry", "python_version", "uri", "template_variables"])
@pytest.mark.parametrize("value", [None, {}])
def test_what_wandb_writes_empty_is_ignored(key: str, value: Any) -> None:
    if key == "uri" and value == {}:
        value = ""
    assert parse(**{key: value}).image_uri == "img:1"


@pytest.mark.parametrize(
    ("typo", "right"), [("runId", "run_id"), ("entitty", "entity"), ("resourceArgs", "resource_args")]
)
def test_a_mistyped_key_is_refused_with_the_right_spelling(typo: str, right: str) -> None:
    assert f"Did you mean {right}?" in refused(**{typo: "x"})[typo]


def test_mistyped_overrides_and_docker_keys_are_refused() -> None:
    found = refused(overrides={"entryPoint": []}, docker={"docker_image": "i", "dockerImage": "i"})
    assert set(found) == {"overrides.entryPoint", "docker.dockerImage"}


def test_a_key_that_nobody_knows_is_a_warning() -> None:
    assert "zzz" in parse(zzz=1).warnings[0]
    assert parse(_server_side=1).warnings == ()


def test_what_only_matters_when_a_run_is_pushed_is_known_and_changes_nothing() -> None:
    assert parse(queue_entity="other", priority=1) == parse()


def test_the_item_key_is_never_shown() -> None:
    spec = parse(_wandb_api_key="s3cr3t" * 7)
    assert "s3cr3t" not in repr(spec)
    with pytest.raises(InvalidRunSpec) as caught:
        parse(_wandb_api_key="s3cr3t" * 7, entity=None)
    assert "s3cr3t" not in str(caught.value)


def test_a_megabyte_is_refused_before_anything_else() -> None:
    found = problems({**PUSHED, "entity": None, "overrides": {"run_config": {"a": "x" * 1_000_000}}})
    assert list(found) == ["run spec of item item-1"]
    assert "480 KiB" in found["run spec of item item-1"]


def test_a_spec_at_the_limit_is_read() -> None:
    assert parse(overrides={"run_config": {"a": "x" * (MAX_SPEC_BYTES - 400)}}).overrides.run_config


@pytest.mark.parametrize("kind", ["list", "object"])
def test_ten_thousand_levels_are_refused(kind: str) -> None:
    deep: Any = 1
    for _ in range(10_000):
        deep = [deep] if kind == "list" else {"a": deep}
    assert "100 levels" in refused(overrides={"run_config": {"a": deep}})["run spec of item item-1"]
    assert "100 levels" in problems(deep)["run spec of item item-1"]


def test_what_is_not_json_has_its_path() -> None:
    config = {"a": float("nan"), "b": [float("inf"), "\ud800"], "c": 1 << 5000, "\udfff": 1}
    found = refused(overrides={"run_config": config})
    assert set(found) == {
        "overrides.run_config.a",
        "overrides.run_config.b[0]",
        "overrides.run_config.b[1]",
        "overrides.run_config.c",
        "overrides.run_config",
    }
    "\n".join(found.values()).encode()


@pytest.mark.parametrize(
    "payload", [None, [], "text", 5, 0.5, True, float("nan"), "\ud800", 1 << 9000, b"x", {1: 2}]
)
def test_anything_but_an_object_is_refused(payload: Any) -> None:
    assert problems(payload)


def test_a_run_id_is_derived_from_the_item_alone() -> None:
    ids = {derive_run_id(f"item-{number}") for number in range(500)}
    assert len(ids) == 500
    assert all(
        len(run_id) == 8 and set(run_id) <= set(string.ascii_lowercase + string.digits) for run_id in ids
    )
    assert derive_run_id("UnVuUXVldWVJdGVtOjE=") == derive_run_id("UnVuUXVldWVJdGVtOjE=")
