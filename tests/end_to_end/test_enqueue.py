"""The launch form: what it puts on the queue, what it refuses, and how it waits."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Any, cast

import pytest
from prefect import State
from prefect.utilities.callables import parameter_schema
from pydantic import SecretStr

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.flows.enqueue import enqueue
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import POOL, LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import finished, until

WRONG_KEY = "wrong_key_that_no_message_may_hold_0123456789abcdef"

Json = dict[str, Any]


@pytest.fixture
async def queue(sandbox: Sandbox, prefect_api: PrefectServer) -> LaunchQueue:
    launch_queue = LaunchQueue(sandbox)
    await launch_queue.create()
    return launch_queue


async def fill_in(
    queue: LaunchQueue, *, wait: bool = False, block: str | None = None, **launch: Any
) -> State:
    """Run the flow as a deployment would: with what the form hands over as JSON."""
    form = {"project": "runs", **launch}
    running = cast(
        "Coroutine[Any, Any, State]", enqueue(block or queue.name, cast("Any", form), wait, return_state=True)
    )
    return await finished(running)


def items(queue: LaunchQueue) -> list[Any]:
    return queue.sandbox.wandb.items.of_queue(queue.sandbox.wandb.queue(queue.name))


def spec_of(queue: LaunchQueue, item: Any) -> Json:
    return json.loads(queue.sandbox.wandb.items.run_spec_text(item))


def only_spec(queue: LaunchQueue) -> Json:
    """The run spec of the only item there is."""
    (item,) = items(queue)
    return spec_of(queue, item)


async def make_job(environment: dict[str, str], sandbox: Sandbox, name: str, image: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wandb", "job", "create", "image", image,
        "--name", name, "--entity", sandbox.entity, "--project", "models",
        env=environment, cwd=environment["WANDB_DIR"],
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await finished(process.communicate())
    assert process.returncode == 0, output.decode()


async def test_what_the_form_holds_is_what_the_item_holds(queue: LaunchQueue) -> None:
    overrides = {"spec": {"worker_pool_specs": [POOL], "labels": {"team": "vision"}}, "run": {"timeout": 60}}

    state = await fill_in(
        queue,
        image="sandbox/train",
        name="first run",
        entry_point=["python", "train.py"],
        args=["--learning-rate", "0.02"],
        run_config={"epochs": 2},
        resource_args=overrides,
    )

    (item,) = items(queue)
    assert state.is_completed()
    assert state.message == f"Queued as item {item.id}."
    spec = only_spec(queue)
    assert (spec["entity"], spec["project"], spec["name"]) == (queue.sandbox.entity, "runs", "first run")
    assert spec["docker"] == {"docker_image": "sandbox/train"}
    assert (spec["resource"], spec["resource_args"]) == ("gcp-vertex", {"gcp-vertex": overrides})
    assert spec["overrides"]["entry_point"] == ["python", "train.py"]
    assert spec["overrides"]["args"] == ["--learning-rate", "0.02"]
    assert spec["overrides"]["run_config"] == {"epochs": 2}


@pytest.mark.slow
async def test_without_overrides_the_run_gets_the_queue_s_own_configuration(queue: LaunchQueue) -> None:
    await fill_in(queue, image="sandbox/train")

    spec = only_spec(queue)
    assert spec["resource"] == "gcp-vertex"
    assert spec["resource_args"]["gcp-vertex"]["spec"]["worker_pool_specs"] == [POOL]


@pytest.mark.slow
async def test_with_priorities_the_queue_hands_out_the_most_urgent_run_first(queue: LaunchQueue) -> None:
    block = await VertexLaunchQueue.aload(queue.name)
    await block.aupsert_queue(prioritize=True)
    for priority in ("low", None, "critical", "high"):
        state = await fill_in(queue, image="sandbox/train", name=str(priority), priority=priority)
        assert state.is_completed(), state.message

    order: list[str] = []
    async with block.open_wandb_queue() as wandb:
        while (popped := await wandb.pop(None)) is not None:
            order.append(cast("Json", popped.payload)["name"])
    assert order == ["critical", "high", "None", "low"]


@pytest.mark.slow
async def test_template_variables_are_filled_in_when_the_run_is_pushed(queue: LaunchQueue) -> None:
    add_template_variable(queue)

    state = await fill_in(queue, image="sandbox/train", template_variables={"size": "large"})

    assert state.is_completed(), state.message
    assert only_spec(queue)["resource_args"]["gcp-vertex"]["spec"]["labels"] == {"size": "large"}


def add_template_variable(queue: LaunchQueue) -> None:
    queue.sandbox.wandb.queues.upsert(
        queue.sandbox.entity,
        "model-registry",
        queue.name,
        created_by="ann",
        resource="gcp-vertex",
        config=json.dumps({"resource_args": {"gcp-vertex": {"spec": {"labels": {"size": "{{size}}"}}}}}),
        variables=json.dumps({"size": {"schema": {"type": "string", "enum": ["small", "large"]}}}),
        prioritization_mode=None,
        external_links=None,
    )


@pytest.mark.slow
async def test_waiting_it_ends_as_the_run_does(queue: LaunchQueue, wandb_environment: dict[str, str]) -> None:
    await make_job(wandb_environment, queue.sandbox, "trainer", "sandbox/train")
    job = f"{queue.sandbox.entity}/models/trainer:latest"
    good = asyncio.create_task(
        fill_in(
            queue, wait=True, job=job, name="good", args=["--epochs", "1"], run_config={"learning_rate": 0.5}
        )
    )
    bad = asyncio.create_task(fill_in(queue, wait=True, image="sandbox/fail", name="bad"))
    await until(lambda: len(items(queue)) == 2 or good.done() or bad.done())
    assert not good.done(), good.result()
    assert not bad.done(), bad.result()

    await agent(queues=[queue.name], drain=True)

    by_name = {spec_of(queue, item)["name"]: item for item in items(queue)}
    ended_well, ended_badly = await good, await bad
    assert ended_well.is_completed()
    assert ended_well.message == f"Item {by_name['good'].id}: its run is finished."
    assert ended_badly.is_failed()
    assert ended_badly.message == f"Item {by_name['bad'].id}: its run is failed."
    run = queue.sandbox.wandb.run("runs", by_name["good"].associated_run_id)
    assert run is not None
    assert run.config["learning_rate"]["value"] == 0.5


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ({}, "launch: Value error, neither an image nor a job is given; fill in one of them"),
        (
            {"image": "python", "job": "sandbox/runs/trainer:v0"},
            "launch: Value error, both an image (python) and a job (sandbox/runs/trainer:v0) are given, "
            "but a launch runs one of them; leave one empty",
        ),
        ({"image": "python", "arg": ["1"]}, "launch has no field 'arg'; did you mean args"),
        (
            {"job": "sandbox/runs/trainer:v0"},
            "job sandbox/runs/trainer:v0: W&B has no such job. Check its entity, project, name and alias.",
        ),
        ({"job": "a/b/c/d"}, "launch.job: 'a/b/c/d' does not name a job. Write entity/project/name:alias."),
        (
            {"image": "python", "priority": "high"},
            "launch.priority: the queue {queue} has no priorities. Leave it",
        ),
        (
            {"image": "python", "template_variables": {"size": "small", "colour": "red"}},
            "wandb did not push the run: CommError: template variable 'colour' is not defined. "
            "Check the queue's name, the image or job, and the template variables.",
        ),
        (
            {"image": "python", "template_variables": {"size": "medium"}},
            "template variable 'size': 'medium' is not one of ['small', 'large']",
        ),
    ],
    ids=[
        "neither",
        "both",
        "mistyped",
        "unknown job",
        "no job's name",
        "no priorities",
        "unknown variable",
        "value of a variable",
    ],
)
async def test_what_cannot_be_launched_is_refused_with_what_to_do_and_nothing_is_queued(
    queue: LaunchQueue, launch: Json, said: str
) -> None:
    add_template_variable(queue)

    state = await fill_in(queue, **launch)

    assert state.is_failed()
    assert said.replace("{queue}", f"{queue.sandbox.entity}/{queue.name}") in (state.message or "")
    assert items(queue) == []


async def test_an_unknown_queue_is_answered_with_the_ones_there_are(queue: LaunchQueue) -> None:
    block = await VertexLaunchQueue.aload(queue.name)
    astray = f"{queue.name}-astray"
    await VertexLaunchQueue(**{**dict(block), "queue": f"{queue.name}x"}).asave(astray)

    at_wandb = await fill_in(queue, block=astray, image="python")
    at_prefect = await fill_in(queue, block=f"{queue.name}-astra", image="python")

    assert at_wandb.is_failed()
    assert at_wandb.message == (
        f"queue {block.entity}/{queue.name}x: there is no such queue "
        f"(The queues of {block.entity} are: {queue.name}). Did you mean {queue.name}?"
    )
    assert at_prefect.is_failed()
    assert (at_prefect.message or "").startswith(
        f"queue: there is no VertexLaunchQueue block named '{queue.name}-astra'. Did you mean '{astray}'?"
    )


@pytest.mark.slow
async def test_a_key_that_wandb_does_not_accept_is_named_by_its_block_and_never_shown(
    queue: LaunchQueue, caplog: pytest.LogCaptureFixture
) -> None:
    block = await VertexLaunchQueue.aload(queue.name)
    wrong = WandbCredentials(api_key=SecretStr(WRONG_KEY), base_url=queue.sandbox.wandb_url)
    await VertexLaunchQueue(**{**dict(block), "wandb_credentials": wrong}).asave(queue.name, overwrite=True)

    state = await fill_in(queue, image="python")

    assert state.is_failed()
    message = state.message or ""
    assert message.startswith(f"W&B API key: {queue.sandbox.wandb_url} does not accept it")
    assert "into the block WandbCredentials" in message
    assert "Beginning flow run" in caplog.text
    assert WRONG_KEY not in message + caplog.text + state.model_dump_json(exclude={"data"})
    assert items(queue) == []


def test_the_form_asks_for_the_queue_then_the_launch_then_whether_to_wait() -> None:
    schema = parameter_schema(enqueue).model_dump()
    fields = schema["properties"]
    assert [(name, field["position"]) for name, field in fields.items()] == [
        ("queue", 0),
        ("launch", 1),
        ("wait", 2),
    ]
    assert all(field["title"] and field["description"].endswith(".") for field in fields.values())
    assert (fields["wait"]["type"], fields["wait"]["default"]) == ("boolean", False)
    assert schema["required"] == ["queue", "launch"]


def test_in_the_form_each_field_of_the_launch_has_its_place_title_and_description() -> None:
    definitions = parameter_schema(enqueue).definitions
    launch = definitions["LaunchForm"]
    fields = launch["properties"].values()
    assert [field["title"] for field in sorted(fields, key=lambda field: field["position"])] == [
        "W&B project",
        "Image",
        "Job",
        "Run name",
        "Entry point",
        "Arguments",
        "Run config",
        "Resource overrides",
        "Template variables",
        "Priority",
    ]
    assert all(field["description"].endswith(".") for field in fields)
    assert launch["required"] == ["project"]


def test_in_the_form_the_priority_is_chosen_from_a_list() -> None:
    definitions = parameter_schema(enqueue).definitions
    assert definitions["LaunchForm"]["properties"]["priority"]["anyOf"][0] == {
        "$ref": "#/definitions/Priority"
    }
    assert definitions["Priority"]["enum"] == ["critical", "high", "medium", "low"]
