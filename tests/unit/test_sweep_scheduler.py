"""What `wandb launch-sweep` leaves in a queue becomes a small job of its own; its trials are looked after."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from wandb.sdk.launch import utils as launch_utils
from wandb.sdk.launch.sweeps import utils as sweep_utils
from wandb.sdk.launch.sweeps.scheduler import Scheduler

from prefect_vertex_launch.core.errors import InvalidRunSpec
from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults, parse_queue_config
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.render import render
from prefect_vertex_launch.jobspec.run_spec import RunSpec, parse_run_spec
from prefect_vertex_launch.jobspec.scheduler_item import SCHEDULER_URI, SWEEP_PLACEHOLDER, fill_in_sweep
from prefect_vertex_launch.jobspec.sweeps import check_sweep_state, scheduler_image, scheduler_resource_args

SWEEP = "8xk2p0qz"
TRAINING = QueueDefaults(
    spec={
        "worker_pool_specs": [
            {
                "machine_spec": {
                    "machine_type": "a2-highgpu-1g",
                    "accelerator_type": "NVIDIA_TESLA_A100",
                    "accelerator_count": 1,
                },
                "replica_count": 1,
                "container_spec": {"image_uri": "${image_uri}", "command": ["torchrun"]},
            }
        ],
        "labels": {"team": "vision"},
        "encryption_spec_key_name": "projects/p/locations/l/keyRings/r/cryptoKeys/k",
        "persistent_resource_id": "gpus",
        "service_account": "block@p.iam.gserviceaccount.com",
    },
    run={
        "network": "projects/1/global/networks/vpc",
        "scheduling_strategy": "SPOT",
        "restart_job_on_worker_restart": True,
        "timeout": 3600,
        "tensorboard": "projects/p/locations/l/tensorboards/1",
    },
    staging_bucket="gs://bucket-1",
)


def pushed(
    *, scheduler_job: str | None = None, image: str | None = None, filled: bool = True
) -> dict[str, Any]:
    """Return the item as the functions of `wandb launch-sweep` make it and the backend queues it."""
    args = sweep_utils.construct_scheduler_args(
        {"job": "acme/p1/train:v3"}, "gpus", "p1", author="alice", return_job=scheduler_job is not None
    )
    overrides: dict[str, Any] = {"run_config": {"scheduler": {"num_workers": 4}}}
    if scheduler_job:
        overrides["run_config"]["sweep_args"] = args
    else:
        overrides["args"] = args
    spec = launch_utils.construct_launch_spec(
        uri=Scheduler.PLACEHOLDER_URI,
        job=scheduler_job,
        api=None,
        name=f"Scheduler.{SWEEP_PLACEHOLDER}",
        project="p1",
        entity="acme",
        docker_image=image,
        resource="local-container" if scheduler_job else "local-process",
        entry_point=None if scheduler_job else list(Scheduler.ENTRYPOINT),
        version=None,
        resource_args={},
        launch_config={"overrides": overrides},
        run_id=SWEEP_PLACEHOLDER,
        repository=None,
        author=None,
    )
    text = json.dumps(spec)
    return json.loads(text.replace(SWEEP_PLACEHOLDER, SWEEP) if filled else text)


def parse(payload: Any) -> RunSpec:
    return parse_run_spec(payload, item_id="item-1")


def problems(payload: Any) -> dict[str, str]:
    with pytest.raises(InvalidRunSpec) as caught:
        parse(payload)
    return {problem.where: str(problem) for problem in caught.value.problems}


def test_a_scheduler_is_known_by_its_uri_and_names_its_sweep():
    spec = parse(pushed())
    assert spec.is_scheduler
    assert (spec.scheduled_sweep, spec.run_id, spec.run_name) == (SWEEP, SWEEP, f"Scheduler.{SWEEP}")
    assert spec.overrides.entry_point == ("wandb", "scheduler", SWEEP)
    assert spec.overrides.run_config == {"scheduler": {"num_workers": 4}}
    assert (spec.image_uri, spec.job, spec.resource) == (None, None, "gcp-vertex")


def test_a_scheduler_is_no_trial_of_its_sweep():
    """`wandb.init` would join the sweep with a WANDB_SWEEP_ID, and its state is PENDING at the start."""
    assert parse({**pushed(), "sweep_id": SWEEP}).sweep_id is None


def test_quotes_that_were_meant_for_a_shell_are_taken_off():
    assert parse(pushed()).overrides.args == (
        "--queue", "gpus", "--project", "p1", "--author", "alice", "--job", "acme/p1/train:v3",
    )  # fmt: skip


def test_a_placeholder_that_was_left_is_filled_in_from_what_names_the_sweep():
    left = pushed(filled=False)
    for named in (
        {**left, "run_id": SWEEP},
        {**left, "sweep_id": SWEEP},
        {**left, "overrides": {**left["overrides"], "entry_point": ["wandb", "scheduler", SWEEP]}},
    ):
        spec = parse(named)
        assert (spec.run_id, spec.run_name) == (SWEEP, f"Scheduler.{SWEEP}")
        assert spec.overrides.entry_point == ("wandb", "scheduler", SWEEP)


def test_the_arguments_of_a_scheduler_job_are_filled_in_too():
    left = pushed(scheduler_job="acme/p1/scheduler:v0", filled=False)
    spec = parse({**left, "run_id": SWEEP})
    assert spec.job == "acme/p1/scheduler:v0"
    assert spec.overrides.run_config["sweep_args"] == {
        "sweep_id": SWEEP, "queue": "gpus", "project": "p1", "job": "acme/p1/train:v3", "author": "alice",
    }  # fmt: skip


def test_the_arguments_of_a_scheduler_job_name_the_sweep_too():
    left = pushed(scheduler_job="acme/p1/scheduler:v0", filled=False)
    left["overrides"]["run_config"]["sweep_args"]["sweep_id"] = SWEEP
    spec = parse(left)
    assert (spec.scheduled_sweep, spec.run_id) == (SWEEP, SWEEP)


def test_a_scheduler_without_a_run_id_runs_as_its_sweep():
    """W&B's agent looks for a scheduler's run under the sweep's id."""
    assert parse({**pushed(), "run_id": None}).run_id == SWEEP


def test_a_scheduler_of_no_sweep_is_refused():
    assert "does not name the sweep" in problems(pushed(filled=False))["run_id"]


@pytest.mark.parametrize(
    "entry_point", [[], ["wandb", "scheduler"], ["bash", "-c", "x"], ["wandb", "agent", "a"]]
)
def test_a_scheduler_without_an_image_is_its_command_and_nothing_else(entry_point):
    payload = pushed()
    payload["overrides"]["entry_point"] = entry_point
    assert "wandb launch-sweep" in problems(payload)["overrides.entry_point"]


@pytest.mark.parametrize("resource", ["local-process", "local-container"])
def test_only_a_scheduler_may_ask_for_the_agents_own_host(resource):
    assert parse({**pushed(), "resource": resource}).is_scheduler
    for uri in (None, "placeholder-uri", "https://github.com/acme/code"):
        found = problems({**pushed(image="img:1"), "resource": resource, "uri": uri})
        assert "never runs anything on its own host" in found["resource"]


def test_a_scheduler_on_another_platform_is_refused():
    assert "kubernetes" in problems({**pushed(), "resource": "kubernetes"})["resource"]


def test_what_belongs_to_the_trials_is_no_problem_of_the_scheduler():
    spec = parse({
        **pushed(),
        "registry": {"url": "gcr.io/p"},
        "resource_args": {"local-container": {"e": {}}, "gcp-vertex": {"run": {"timeout": 5}}},
    })  # fmt: skip
    assert [warning.split(":")[0] for warning in spec.warnings] == [
        "registry",
        "resource_args.local-container",
    ]


def job_of(spec: RunSpec, defaults: QueueDefaults = TRAINING, image: str = "wandb:1") -> dict[str, Any]:
    config = parse_queue_config(scheduler_resource_args(spec, defaults))
    context = LaunchContext(
        item_id="i", queue=QueueIdentity("api.wandb.ai", "acme", "gpus"),
        run_id=spec.run_id or "", image_uri=image,
        base_url="http://w", api_key=SecretStr("k" * 40), project="p", location="us-central1",
    )  # fmt: skip
    job = render(spec, config, context).job
    return type(job).to_dict(job, use_integers_for_enums=False)


def test_a_scheduler_becomes_one_small_machine_where_the_queue_runs_its_jobs():
    job = job_of(parse(pushed()))
    (pool,) = job["job_spec"]["worker_pool_specs"]
    assert pool["machine_spec"]["machine_type"] == "e2-standard-4"
    assert "accelerator_count" not in {name for name, value in pool["machine_spec"].items() if value}
    assert pool["replica_count"] == "1"
    container = pool["container_spec"]
    assert container["image_uri"] == "wandb:1"
    assert container["command"] == ["wandb", "scheduler", SWEEP]
    assert container["args"][:4] == ["--queue", "gpus", "--project", "p1"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    assert (env["WANDB_RUN_ID"], env["WANDB_ENTITY"], env["WANDB_PROJECT"]) == (SWEEP, "acme", "p1")
    assert "WANDB_SWEEP_ID" not in env
    assert job["labels"]["team"] == "vision"
    assert job["encryption_spec"]["kms_key_name"].endswith("/k")
    assert job["job_spec"]["service_account"] == "block@p.iam.gserviceaccount.com"
    assert job["job_spec"]["network"] == "projects/1/global/networks/vpc"
    assert job["job_spec"]["base_output_directory"]["output_uri_prefix"].startswith("gs://bucket-1/")


def test_nothing_that_was_meant_for_training_reaches_the_scheduler():
    job_spec = job_of(parse(pushed()))["job_spec"]
    assert not job_spec.get("scheduling")
    assert not job_spec.get("persistent_resource_id")
    assert not job_spec.get("tensorboard")


def test_the_items_own_account_and_network_win_over_the_blocks():
    own = {"run": {"service_account": "item@p.iam.gserviceaccount.com", "scheduling_strategy": "SPOT"},
           "spec": {"labels": {"a": "b"}, "worker_pool_specs": "unusable"}}  # fmt: skip
    args = scheduler_resource_args(parse({**pushed(), "resource_args": {"vertex": own}}), TRAINING)
    assert args["run"]["service_account"] == "item@p.iam.gserviceaccount.com"
    assert "service_account" not in args["spec"]
    assert args["spec"]["labels"] == {"a": "b"}
    assert "scheduling_strategy" not in args["run"]


def test_another_machine_can_be_asked_for():
    args = scheduler_resource_args(parse(pushed()), TRAINING, machine_type="n1-standard-4")
    assert args["spec"]["worker_pool_specs"][0]["machine_spec"] == {"machine_type": "n1-standard-4"}


def test_a_scheduler_job_runs_what_its_image_says():
    args = scheduler_resource_args(parse(pushed(scheduler_job="acme/p1/scheduler:v0")), TRAINING)
    assert args["spec"]["worker_pool_specs"][0]["container_spec"] == {"image_uri": "${image_uri}"}


def test_a_schedulers_own_image_comes_before_the_blocks():
    assert scheduler_image(parse(pushed(image="own:1")), "block:1") == "own:1"
    assert scheduler_image(parse(pushed()), "block:1") == "block:1"


@pytest.mark.parametrize("block_image", [None, ""])
def test_a_scheduler_without_any_image_is_refused_with_the_ways_out(block_image):
    with pytest.raises(InvalidRunSpec) as caught:
        scheduler_image(parse(pushed()), block_image)
    text = str(caught.value)
    assert "nothing of an item is ever run on this host" in text
    assert "Sweep scheduler image" in text
    assert f"wandb scheduler {SWEEP}" in text


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED"])
def test_a_trial_of_a_sweep_that_goes_on_is_launched(state):
    check_sweep_state(state, SWEEP)


@pytest.mark.parametrize("state", ["FINISHED", "CANCELED", "STOPPED", "PENDING", "CRASHED", ""])
def test_a_trial_of_a_sweep_that_is_over_is_refused(state):
    with pytest.raises(InvalidRunSpec, match=f"sweep {SWEEP} is {state}.*wandb launch-sweep --resume_id"):
        check_sweep_state(state, SWEEP)


def test_a_trial_of_no_sweep_is_refused():
    with pytest.raises(InvalidRunSpec, match=f"there is no sweep {SWEEP}"):
        check_sweep_state(None, SWEEP)


ODD = st.none() | st.integers() | st.text(max_size=6) | st.sampled_from([SWEEP_PLACEHOLDER, "'", "''"])
ANYTHING = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["entry_point", "args", "run_config", "sweep_args", "sweep_id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from(["overrides", "run_id", "sweep_id", "name", "resource_args"]), ANYTHING)
)
def test_any_scheduler_is_read_or_refused(changes: dict[str, Any]):
    payload = {**pushed(), **changes, "uri": SCHEDULER_URI}
    before = copy.deepcopy(payload)
    fill_in_sweep(payload)
    assert payload == before
    try:
        spec = parse(payload)
    except InvalidRunSpec:
        return
    assert spec.scheduled_sweep
    assert scheduler_resource_args(spec, TRAINING)["spec"]["staging_bucket"]
