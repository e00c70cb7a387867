"""Whatever a person may put on a queue: it is refused in words that help, and the next item goes on.

All bad items lie on one queue, with a good one behind every few, and one agent drains it once. Every
item, good or bad, would leave a file behind if its program were ever run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect import State
from prefect.client.schemas.objects import FlowRun, StateType

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.core.labels import ITEM_LABEL
from prefect_vertex_launch.core.states import LaunchState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import POOL, LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer, prefect_client_of
from tests.eventually import HANG_SECONDS

pytestmark = pytest.mark.slow

ARGS = "resource_args.gcp-vertex"
SPEC = f"{ARGS}.spec"
FIRST_POOL = f"{SPEC}.worker_pool_specs[0]"
MACHINE = f"{FIRST_POOL}.machine_spec"
CONTAINER = f"{FIRST_POOL}.container_spec"
JOB_SPEC = "in projects/test-project/locations/us-central1: job_spec"

Json = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """An item as it should never be: a good one with `changes`, or any text in its place.

    `said` has to be part of what the refusal says.
    """

    name: str
    said: str
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    text: str | None = None


def resource_args(spec: Json | None = None, run: Json | None = None) -> Json:
    """The arguments of a good item with some changed; None leaves one out."""
    complete = {"worker_pool_specs": [POOL], "staging_bucket": "gs://bucket", **(spec or {})}
    kept = {name: value for name, value in complete.items() if value is not None}
    return {"resource_args": {"gcp-vertex": {"spec": kept, "run": run or {}}}}


def with_launch(**options: Any) -> Json:
    args = resource_args()
    args["resource_args"]["gcp-vertex"]["launch"] = options
    return args


def pool(**changes: Any) -> Json:
    return resource_args({"worker_pool_specs": [{**POOL, **changes}]})


def machine(machine_type: str, **changes: Any) -> Json:
    return pool(machine_spec={"machine_type": machine_type, **changes})


def container(**changes: Any) -> Json:
    return pool(container_spec={"image_uri": "${image_uri}", **changes})


def nested(levels: int) -> str:
    """A run spec that is right but for a run config of so many levels."""
    config = '{"a":' * levels + "1" + "}" * levels
    head = json.dumps(
        {"entity": "sandbox", "project": "runs", "docker": {"docker_image": "sandbox/no-wandb"}}
    )
    return f'{head[:-1]}, "overrides": {{"run_config": {config}}}}}'


PYTHON_PACKAGE = {
    "executor_image_uri": "python",
    "package_uris": ["gs://bucket/trainer.tar.gz"],
    "python_module": "trainer",
}
# So many bad items have one good one behind them.
BAD_PER_GOOD = 5
NO_LONGER_JSON = "Launch the run again with a correct spec."
BOTH_OR_NONE = "accelerator_type and accelerator_count go together: both or none"

BAD = [
    Bad(
        "no worker_pool_specs",
        f"{SPEC}.worker_pool_specs: missing (a job needs at least one worker pool). "
        "Add a list with one pool: machine_spec, replica_count and container_spec.",
        resource_args({"worker_pool_specs": None}),
    ),
    Bad(
        "empty worker_pool_specs",
        f"{SPEC}.worker_pool_specs: empty (a job needs at least one worker pool). Add one.",
        resource_args({"worker_pool_specs": []}),
    ),
    Bad(
        "no staging_bucket",
        f"{SPEC}.staging_bucket: missing (the job's output goes there). "
        "Set it to gs://your-bucket, here or in the queue's block.",
        resource_args({"staging_bucket": None}),
    ),
    Bad(
        "staging_bucket without gs",
        f"{SPEC}.staging_bucket: 'bucket' does not have the right form. Write gs://bucket.",
        resource_args({"staging_bucket": "bucket"}),
    ),
    Bad(
        "staging_bucket of another cloud",
        f"{SPEC}.staging_bucket: 's3://bucket' does not have the right form. Write it like gs://",
        resource_args({"staging_bucket": "s3://bucket"}),
    ),
    Bad(
        "camelCase argument",
        f"{SPEC}.workerPoolSpecs: 'workerPoolSpecs' is not a field of spec (the arguments of CustomJob). "
        "Did you mean worker_pool_specs?",
        resource_args({"worker_pool_specs": None, "workerPoolSpecs": [POOL]}),
    ),
    Bad(
        "camelCase below",
        f"{MACHINE}.machineType: 'machineType' is not a field of MachineSpec. Did you mean machine_type?",
        pool(machine_spec={"machineType": "n1-standard-4"}),
    ),
    Bad(
        "mistyped key of the item",
        "overides: 'overides' is not a field of a run spec. Did you mean overrides?",
        {"overides": {"args": ["--lr", "0.1"]}},
    ),
    Bad(
        "mistyped override",
        "overrides.arg: 'arg' is not a field of overrides. Did you mean args?",
        {"overrides": {"arg": ["--lr", "0.1"]}},
    ),
    Bad(
        "mistyped spec",
        f"{ARGS}.specs: 'specs' is not a field of a Vertex queue's configuration. Did you mean spec?",
        {"resource_args": {"gcp-vertex": {"specs": {"worker_pool_specs": [POOL]}}}},
    ),
    Bad(
        "mistyped argument of run",
        f"{ARGS}.run.time_out: 'time_out' is not a field of run (the arguments of CustomJob.run). "
        "Did you mean timeout?",
        resource_args(run={"time_out": 3600}),
    ),
    Bad(
        "argument in the wrong place",
        f"{SPEC}.timeout: timeout is not an argument of spec. Move it to run.timeout.",
        resource_args({"timeout": 3600}),
    ),
    Bad(
        "mistyped key of a pool",
        f"{FIRST_POOL}.replica_cout: 'replica_cout' is not a field of WorkerPoolSpec. "
        "Did you mean replica_count?",
        pool(replica_cout=1),
    ),
    Bad(
        "mistyped key five levels down",
        f"{CONTAINER}.env[0].vaule: 'vaule' is not a field of EnvVar. Did you mean value?",
        container(env=[{"name": "A", "vaule": "1"}]),
    ),
    Bad(
        "string for a list of arguments",
        f"{CONTAINER}.args: expected a list, got a string. Write one list item per word.",
        container(args="--lr 0.1"),
    ),
    Bad(
        "string for a list of overrides",
        "overrides.args: expected a list of strings, got a string. Write one list item per word.",
        {"overrides": {"args": "--lr 0.1"}},
    ),
    Bad(
        "pool outside of a list",
        f"{SPEC}.worker_pool_specs: expected a list of worker pools, got an object. "
        "Put the pool into a list: [{…}].",
        resource_args({"worker_pool_specs": POOL}),
    ),
    Bad(
        "replica_count 1.5",
        f"{FIRST_POOL}.replica_count: expected a whole number, got 1.5",
        pool(replica_count=1.5),
    ),
    Bad(
        "container and Python package",
        f"{FIRST_POOL}: both container_spec and python_package_spec are set "
        "(WorkerPoolSpec takes one of them). Keep one and remove the other.",
        pool(python_package_spec=PYTHON_PACKAGE),
    ),
    Bad(
        "unknown accelerator",
        f"{MACHINE}.accelerator_type: 'NVIDIA_TESLA_A1000' is no AcceleratorType. "
        "Did you mean NVIDIA_TESLA_A100?",
        machine("n1-standard-4", accelerator_type="NVIDIA_TESLA_A1000", accelerator_count=1),
    ),
    Bad(
        "accelerator on the wrong machine family",
        f"{MACHINE}.accelerator_type: NVIDIA_TESLA_T4 does not fit onto a2-highgpu-1g "
        "(a2-highgpu-1g takes NVIDIA_TESLA_A100 x 1). NVIDIA_TESLA_T4 fits onto n1-standard-4,",
        machine("a2-highgpu-1g", accelerator_type="NVIDIA_TESLA_T4", accelerator_count=1),
    ),
    Bad(
        "more accelerators than the machine has",
        f"{MACHINE}.accelerator_count: 2 x NVIDIA_TESLA_A100 does not fit onto a2-highgpu-1g "
        "(a2-highgpu-1g takes NVIDIA_TESLA_A100 x 1)",
        machine("a2-highgpu-1g", accelerator_type="NVIDIA_TESLA_A100", accelerator_count=2),
    ),
    Bad(
        "machine without its accelerator",
        f"{MACHINE}.accelerator_type: missing (a2-highgpu-1g exists only with NVIDIA_TESLA_A100 x 1). "
        "Set NVIDIA_TESLA_A100 x 1.",
        machine("a2-highgpu-1g"),
    ),
    Bad(
        "accelerator without its count",
        f"{MACHINE}.accelerator_count: NVIDIA_TESLA_T4 without a count ({BOTH_OR_NONE}). Say how many.",
        machine("n1-standard-4", accelerator_type="NVIDIA_TESLA_T4"),
    ),
    Bad(
        "label that is no string",
        f"{SPEC}.labels.team: expected a string, got an integer. Put it into quotes.",
        resource_args({"labels": {"team": 7}}),
    ),
    Bad(
        "labels that become one",
        f"{SPEC}.labels.team: becomes 'team', which is there already. Rename one of them.",
        resource_args({"labels": {"Team": "a", "team": "b"}}),
    ),
    Bad(
        "too many labels",
        f"{SPEC}.labels: 65 labels, 4 of them the launch's own (a job has at most 64). Remove some.",
        resource_args({"labels": {f"label-{number}": "a" for number in range(61)}}),
    ),
    Bad(
        "variable whose name is none",
        f"{CONTAINER}.env[0].name: '1ST' is not a valid name "
        "(letters, digits and underscores, not starting with a digit)",
        container(env=[{"name": "1ST", "value": "1"}]),
    ),
    Bad(
        "variable that is there twice",
        f"{CONTAINER}.env[1].name: 'A' is there twice (the first is env[0]). Remove one of them.",
        container(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
    ),
    Bad(
        "variables as an object",
        f'{CONTAINER}.env: expected a list, got an object. Write [{{"name": "A", "value": "1"}}] instead',
        container(env={"A": "1"}),
    ),
    Bad(
        "local-process",
        "resource: 'local-process' is not a Vertex AI resource (this launcher submits to Vertex AI only and "
        "never runs anything on its own host). "
        "Push the run to a Vertex queue, or set the resource to gcp-vertex.",
        {"resource": "local-process", "resource_args": {"local-process": {}}},
    ),
    Bad(
        "local-container",
        "resource: 'local-container' is not a Vertex AI resource",
        {"resource": "local-container", "resource_args": None},
    ),
    Bad(
        "kubernetes",
        "resource: 'kubernetes' is not a Vertex AI resource",
        {"resource": "kubernetes"},
    ),
    Bad(
        "arguments of another resource",
        "resource_args.kubernetes: arguments of another resource (this is a Vertex AI queue). Remove them.",
        {"resource_args": {"kubernetes": {"kind": "Job"}}},
    ),
    Bad(
        "job and image",
        "docker.docker_image, job: both an image and a job (a launch runs exactly one of them). Give one",
        {"job": "sandbox/runs/trainer:v0"},
    ),
    Bad(
        "neither job nor image",
        "docker.docker_image, job: neither an image nor a job (a launch runs exactly one of them). Give one",
        {"docker": None},
    ),
    Bad(
        "job that does not exist",
        "job sandbox/runs/trainer:v0: W&B has no such job. Check its entity, project, name and alias.",
        {"docker": None, "job": "sandbox/runs/trainer:v0"},
    ),
    Bad(
        "no entity",
        "entity: missing (a run belongs to a project of an entity). Pass --entity.",
        {"entity": None},
    ),
    Bad(
        "no project",
        "project: missing (a run belongs to a project of an entity). Pass --project.",
        {"project": None},
    ),
    Bad("malformed JSON", f"the run spec is not valid JSON. {NO_LONGER_JSON}", text='{"entity": "sandbox", '),
    Bad("a list", "expected an object, got a list", text="[]"),
    Bad("null", "expected an object, got null", text="null"),
    Bad(
        "1 MB",
        "larger than 480 KiB "
        "(it has to fit into one request to Vertex AI, together with what the launch adds). "
        "Put large inputs into a W&B artifact or a bucket and pass their names.",
        {"overrides": {"run_config": {"notes": "x" * 1_000_000}}},
    ),
    Bad(
        "a character that no database has",
        "overrides.run_config.notes: holds a NUL character (no argument, variable or database can)",
        {"overrides": {"run_config": {"notes": "a\0b"}}},
    ),
    Bad("500 levels", "nested deeper than 100 levels", text=nested(500)),
    Bad(
        "10,000 levels",
        f"the run spec is nested too deeply to be read. {NO_LONGER_JSON}",
        text=nested(10_000),
    ),
    Bad(
        "second pool without replicas",
        f"{SPEC}.worker_pool_specs[1].replica_count: 0 replicas",
        resource_args({"worker_pool_specs": [POOL, {**POOL, "replica_count": 0}]}),
    ),
    Bad(
        "launch option with a wrong name",
        f"{ARGS}.launch.fallback: 'fallback' is not a field of launch. Did you mean fallbacks?",
        with_launch(fallback=[{"location": "us-east1"}]),
    ),
    Bad(
        "fallback with a wrong machine",
        f"{ARGS}.launch.fallbacks[0].machine_spec.machine_typ: 'machine_typ' is not a field of MachineSpec. "
        "Did you mean machine_type?",
        with_launch(fallbacks=[{"machine_spec": {"machine_typ": "n1-standard-8"}}]),
    ),
    Bad(
        "fallback that changes nothing",
        f"{ARGS}.launch.fallbacks[0]: changes nothing (the same would be tried again).",
        with_launch(fallbacks=[{}]),
    ),
    Bad(
        "command for a pool that is not there",
        f"{ARGS}.launch.command_pools: pool 1 is not there",
        with_launch(command_pools=[0, 1]),
    ),
    Bad(
        "run id for an unknown kind of replica",
        f'{ARGS}.launch.run_id_replicas: \'first\' is not "primary" or "all".',
        with_launch(run_id_replicas="first"),
    ),
    Bad(
        "one reserved IP range without a list",
        f"{SPEC}.reserved_ip_ranges: expected a list of strings, got a string. Put it into a list: […].",
        resource_args({"reserved_ip_ranges": "my-range"}),
    ),
    Bad(
        "trial of a sweep that is not there",
        "sweep",
        {"sweep_id": "nowhere", **resource_args()},
    ),
    # Only Vertex AI itself refuses it: it may have machines that are not in our list yet.
    Bad(
        "machine type that Vertex AI does not have",
        f"{JOB_SPEC}.worker_pool_specs[0].machine_spec.machine_type: "
        'Machine type "n9-standard-4" is not supported. (Vertex AI refused it)',
        machine("n9-standard-4"),
    ),
]


@dataclass(frozen=True)
class Good:
    """A good item, and the file that its program leaves behind."""

    item_id: str
    marker: Path


@dataclass(frozen=True)
class Seen:
    """What became of a bad item and of the good one behind it, once the queue was drained."""

    item_id: str
    item_state: str
    item_error: Json | None
    launch: FlowRun | None
    jobs: int
    has_run: bool
    next_job_states: tuple[LaunchState, ...]
    next_has_run: bool


@dataclass(frozen=True)
class Drained:
    agent_state: State[Any] | None
    seen: Mapping[str, Seen]


@pytest.fixture(scope="module")
def drained(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Drained:
    with prefect_client_of(prefect_server):
        return asyncio.run(drain_all(tmp_path_factory.mktemp("has-run")))


async def drain_all(markers: Path) -> Drained:
    async with Sandbox(queued_seconds=0, pending_seconds=0) as sandbox:
        queue = LaunchQueue(sandbox, max_jobs=8)
        block = await queue.create()
        # Nothing that an item leaves out comes from the block.
        bare = VertexLaunchQueue(**{**dict(block), "spec": {}, "staging_bucket": None})
        await bare.asave(queue.name, overwrite=True)
        pushed = push_all(queue, markers)
        state = await drain(queue)
        launches = await queue.launches()
        jobs: dict[str, list[LaunchState]] = {}
        for job in await queue.jobs():
            jobs.setdefault(job.labels[ITEM_LABEL], []).append(job.launch_state)
        seen = {}
        for bad in BAD:
            bad_id, good = pushed[bad.name]
            item = queue.item(bad_id)
            seen[bad.name] = Seen(
                item_id=bad_id,
                item_state=item.state,
                item_error=item.error,
                launch=launches.get(bad_id),
                jobs=len(jobs.get(queue.identity.item_key(bad_id), ())),
                has_run=marker_of(bad, markers).exists(),
                next_job_states=tuple(jobs.get(queue.identity.item_key(good.item_id), ())),
                next_has_run=good.marker.exists(),
            )
        return Drained(state, seen)


async def drain(queue: LaunchQueue) -> State[Any] | None:
    """Let an agent drain the queue; None if nothing comes to its end any more.

    Then whichever item holds it up fails its own case.
    """

    def ended() -> int:
        wandb = queue.sandbox.wandb
        return sum(item.state == "FAILED" for item in wandb.items.of_queue(wandb.queue(queue.name)))

    serving = asyncio.create_task(agent(queues=[queue.name], drain=True, return_state=True))
    before = -1
    while not serving.done() and ended() > before:
        before = ended()
        await asyncio.wait({serving}, timeout=HANG_SECONDS)
    if serving.done():
        return serving.result()
    serving.cancel()
    await asyncio.wait({serving})
    return None


def marker_of(bad: Bad, markers: Path) -> Path:
    return markers / f"bad-{BAD.index(bad)}"


def push_all(queue: LaunchQueue, markers: Path) -> dict[str, tuple[str, Good]]:
    """Push every bad item; return its id by its name, and the good one that comes behind it."""
    pushed: dict[str, tuple[str, Good]] = {}
    for few in batched(BAD, BAD_PER_GOOD):
        ids = [push_bad(queue, bad, markers) for bad in few]
        good = push_good(queue, markers / f"good-{len(pushed)}")
        pushed.update({bad.name: (item_id, good) for bad, item_id in zip(few, ids, strict=True)})
    return pushed


def batched(all_of_them: Sequence[Bad], count: int) -> Iterator[Sequence[Bad]]:
    for start in range(0, len(all_of_them), count):
        yield all_of_them[start : start + count]


def push_bad(queue: LaunchQueue, bad: Bad, markers: Path) -> str:
    if bad.text is not None:
        return queue.push_text(bad.text)
    changes = {**resource_args(), **bad.changes}
    overrides = {
        "entry_point": ["touch", str(marker_of(bad, markers))],
        **changes.pop("overrides", {}),
    }
    return queue.push("sandbox/no-wandb", overrides=overrides, **changes)


def push_good(queue: LaunchQueue, marker: Path) -> Good:
    overrides = {"entry_point": ["touch", str(marker)]}
    return Good(queue.push("sandbox/no-wandb", overrides=overrides, **resource_args()), marker)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_item_is_refused_with_its_reason_and_the_next_one_runs(bad: Bad, drained: Drained) -> None:
    seen = drained.seen[bad.name]

    assert seen.item_state == "FAILED"
    assert seen.item_error is not None
    assert bad.said in seen.item_error["message"]
    assert seen.launch is not None
    assert seen.launch.state is not None
    assert (seen.launch.state.name, seen.launch.state.type) == ("Refused", StateType.FAILED)
    assert seen.launch.state.message == seen.item_error["message"]
    assert (seen.jobs, seen.has_run) == (0, False)
    assert (seen.next_job_states, seen.next_has_run) == ((LaunchState.SUCCEEDED,), True)


def test_the_agent_goes_on_until_the_queue_is_drained(drained: Drained) -> None:
    # The good ones do without wandb.
    good = -(-len(BAD) // BAD_PER_GOOD)
    ends = f"{good} failed, {len(BAD)} refused"
    assert drained.agent_state is not None
    assert drained.agent_state.is_completed()
    assert drained.agent_state.message == (
        f"Ended because the queue is drained. {len(BAD) + good} launched, 0 adopted, 0 handed over; {ends}."
    )
