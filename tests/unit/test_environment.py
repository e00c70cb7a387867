"""The container's environment is W&B's own: names, order, conditions and the split of long values."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from wandb.sdk.launch._project_spec import LaunchProject
from wandb.sdk.launch.utils import MAX_ENV_LENGTHS

from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.environment import (
    MAX_VALUE_CHARACTERS,
    companion_environment,
    join_literally,
    launch_environment,
    literal_json,
    literal_text,
)
from prefect_vertex_launch.jobspec.run_spec import parse_run_spec
from prefect_vertex_launch.sandbox.vertex.replicas import _expanded

BASE_URL, KEY = "https://api.wandb.ai", "k" * 40


def payload(**changes: Any) -> dict[str, Any]:
    return {
        "entity": "acme",
        "project": "p1",
        "docker": {"docker_image": "img:1"},
        "run_id": "run1",
        **changes,
    }


CONTEXT = LaunchContext(
    item_id="item-1", queue=QueueIdentity("api.wandb.ai", "acme", "vertex"), run_id="run1", image_uri="img:1",
    base_url=BASE_URL, api_key=SecretStr(KEY), project="gcp", location="us-central1",
)  # fmt: skip


def ours(item: dict[str, Any], **context: Any) -> dict[str, str]:
    return launch_environment(parse_run_spec(item, item_id="item-1"), replace(CONTEXT, **context))


def of_wandb(item: dict[str, Any]) -> dict[str, str]:
    """Return what W&B's own agent puts into the container for this item."""
    api: Any = SimpleNamespace(settings={"base_url": BASE_URL}, api_key=KEY)
    project = LaunchProject.from_spec({"resource": "vertex", **item}, api)
    project.queue_name, project.queue_entity, project.run_queue_item_id = "vertex", "acme", "item-1"
    return project.get_env_vars_dict(api, MAX_ENV_LENGTHS["VertexRunner"])


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0$"), min_size=1, max_size=10)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


objects = st.dictionaries(texts, values, max_size=3)


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": texts,
            "author": texts,
            "sweep_id": texts,
            "_resume_count": st.integers(0, 5),
            "overrides": st.fixed_dictionaries(
                {},
                optional=dict.fromkeys(("run_config", "files", "artifacts"), objects),
            ),
        },
    )
)  # fmt: skip
def test_names_order_and_values_are_those_of_wandbs_own_agent(changes: dict[str, Any]) -> None:
    item = payload(**changes)
    assert list(ours(item).items()) == list(of_wandb(item).items())


@pytest.mark.parametrize("key", ["run_config", "files"])
@pytest.mark.parametrize("length", [MAX_VALUE_CHARACTERS - 9, MAX_VALUE_CHARACTERS - 8, 70_000])
def test_long_values_are_split_as_wandbs_own_agent_does(key: str, length: int) -> None:
    item = payload(overrides={key: {"a": "x" * length}})
    environment = ours(item)
    assert list(environment.items()) == list(of_wandb(item).items())
    assert max(map(len, environment.values())) <= MAX_VALUE_CHARACTERS


def test_a_split_value_can_be_put_together_again() -> None:
    config = {"text": "$(HOME) and $$ " * 9_000}
    environment = ours(payload(overrides={"run_config": config}))
    chunks = [
        environment[f"WANDB_CONFIG_{index}"]
        for index in range(len(environment))
        if f"WANDB_CONFIG_{index}" in environment
    ]
    assert "WANDB_CONFIG" not in environment
    assert len(chunks) > 4
    assert json.loads("".join(chunks)) == config


def test_a_job_is_among_the_artifacts_under_wandbs_name() -> None:
    item = {**payload(overrides={"artifacts": {"data": "d:v1"}}), "docker": {}, "job": "e/p/n:v2"}
    assert json.loads(ours(item)["WANDB_ARTIFACTS"]) == {"_wandb_job": "e/p/n:v2", "data": "d:v1"}


def test_the_project_keeps_its_capitals() -> None:
    assert ours(payload(project="MyProj"))["WANDB_PROJECT"] == "MyProj"


def test_no_user_name_goes_with_the_authors_own_key() -> None:
    item = payload(author="alice")
    assert ours(item)["WANDB_USERNAME"] == "alice"
    assert "WANDB_USERNAME" not in ours(item, api_key_of_author=True)
    assert list(ours(item, api_key_of_author=True).items()) == list(
        of_wandb({**item, "_wandb_api_key": KEY}).items()
    )


def test_a_further_attempt_resumes_its_run() -> None:
    assert "WANDB_RESUME" not in ours(payload())
    assert ours(payload(), attempt=2)["WANDB_RESUME"] == "allow"


def test_a_run_is_resumed_where_vertex_ai_may_start_its_container_again() -> None:
    run_spec = parse_run_spec(payload(), item_id="item-1")
    assert launch_environment(run_spec, CONTEXT, may_start_again=True)["WANDB_RESUME"] == "allow"
    assert "WANDB_RESUME" not in launch_environment(run_spec, CONTEXT)


def test_a_companion_of_the_run_is_told_everything_but_that_it_is_the_run() -> None:
    environment = ours(payload(run_id="$$(r", sweep_id="s1", name="n"), run_id="$$(r", attempt=2)
    companion = companion_environment(environment)
    assert environment.keys() - companion.keys() == {
        "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_LAUNCH_TRACE_ID",
    }  # fmt: skip
    assert companion.keys() - environment.keys() == {"WANDB_RUN_GROUP"}
    assert _expanded(companion["WANDB_RUN_GROUP"], {}) == "$$(r"
    assert companion["WANDB_PROJECT"] == environment["WANDB_PROJECT"]


def test_nothing_of_a_launch_can_be_taken_for_a_reference_to_a_variable() -> None:
    item = payload(name="$(WANDB_API_KEY)", overrides={"run_config": {"$(A)": ["$$(B)", "a $ b"]}})
    environment = ours(item)
    assert environment["WANDB_NAME"] == "$$(WANDB_API_KEY)"
    assert "$" not in environment["WANDB_CONFIG"]
    assert json.loads(environment["WANDB_CONFIG"]) == {"$(A)": ["$$(B)", "a $ b"]}


def test_a_plain_dollar_stays_as_it_is() -> None:
    assert literal_json({"price": "5 $"}) == '{"price": "5 $"}'
    assert literal_text("5 $ or ${A}") == "5 $ or ${A}"


# How a value arrives: what the platform makes of it when the container starts

VARIABLES = {"A": "the key", "WANDB_API_KEY": KEY}
dollars = st.text(st.sampled_from("$$$()Ab"), max_size=12)


def test_every_short_text_of_dollars_and_parentheses_arrives_as_it_is() -> None:
    for letters in itertools.product("$(A)b", repeat=6):
        text = "".join(letters)
        assert _expanded(literal_text(text), VARIABLES) == text


@given(st.text(st.characters(codec="utf-8")) | dollars)
def test_any_text_arrives_as_it_is(text: str) -> None:
    assert _expanded(literal_text(text), VARIABLES) == text
    assert json.loads(_expanded(literal_json([text, {text: text}]), VARIABLES)) == [text, {text: text}]


@pytest.mark.parametrize(
    "name", ["$(WANDB_API_KEY)", "$$(WANDB_API_KEY)", "$$$(WANDB_API_KEY)", "pay $$ now"]
)
def test_the_name_of_a_run_arrives_as_it_is_and_never_as_the_key(name: str) -> None:
    environment = ours(payload(name=name, author=name, sweep_id=name))
    for variable in ("WANDB_NAME", "WANDB_USERNAME", "WANDB_SWEEP_ID"):
        assert _expanded(environment[variable], environment) == name


@given(st.lists(st.tuples(dollars, dollars), max_size=3), dollars)
def test_what_macros_bring_in_arrives_as_it_is_beside_what_the_queue_wrote(
    pairs: list[tuple[str, str]], end: str
) -> None:
    def meant(text: str, goes_on: bool) -> str:
        # A dollar sign of the queue's before a macro is one: what comes after it is not the queue's.
        return _expanded(text, VARIABLES) if not goes_on else _expanded(f"{text}\0", VARIABLES)[:-1]

    # An open `$(` of the queue's with a macro inside is a reference that the queue wants.
    pairs = [(text.replace("(", ""), brought) for text, brought in pairs]
    parts = [*(text for pair in pairs for text in pair), end]
    brought = [*[False, True] * len(pairs), False]
    wanted = "".join(meant(text, True) + brought for text, brought in pairs) + meant(end, False)
    assert _expanded(join_literally(parts, brought), VARIABLES) == wanted
