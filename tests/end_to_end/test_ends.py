"""Every way in which a launch may end: told at W&B, in Prefect and in an artifact, with its category.

All launches are under way at once on one queue, and one agent drains it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from google.rpc.code_pb2 import Code
from prefect import State
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling

from prefect_vertex_launch.core.labels import ATTEMPT_LABEL
from prefect_vertex_launch.core.states import JobRecord, LaunchState
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import POOL, LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer, prefect_client_of, send_what_is_left
from tests.eventually import HANG_SECONDS, until

pytestmark = pytest.mark.slow

ENDLESS = "import time; time.sleep(600)"
# Its first attempt goes on until it is ended; a later one is the same run at W&B.
SECOND_TIME_LUCKY = """
import os, time
if "WANDB_RESUME" not in os.environ: time.sleep(600)
import wandb
with wandb.init() as run: run.log({"resumed": os.environ["WANDB_RESUME"] == "allow"})
"""
STOCKOUT = (
    "Resources are insufficient in region: us-central1. "
    "Try a different region or use a different accelerator."
)
PREEMPTED = "The job was preempted because its Spot machines were taken away."
INTERNAL = "Internal error occurred for the current attempt"
Json = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """One launch under way."""

    queue: LaunchQueue
    item_id: str

    async def jobs(self) -> list[JobRecord]:
        """Its jobs in all regions, oldest attempt first."""
        return await self.queue.jobs_of(self.item_id)

    async def running(self, attempt: int = 1) -> str:
        """The name of an attempt's job, once it runs."""

        async def found() -> str | None:
            for job in await self.jobs():
                if job.attempt == attempt and job.launch_state is LaunchState.RUNNING:
                    return job.name
            return None

        return await until(found)

    async def end(self, state: JobState, code: int = 0, message: str = "", *, attempt: int = 1) -> None:
        self.queue.sandbox.vertex.set_state(await self.running(attempt), state, code, message)

    async def launch(self) -> FlowRun:
        async def found() -> FlowRun | None:
            return (await self.queue.launches()).get(self.item_id)

        return await until(found)

    async def cancel_in_prefect(self) -> None:
        async with get_client() as client:
            await client.set_flow_run_state((await self.launch()).id, Cancelling())


def program(code: str) -> Json:
    return {"docker": {"docker_image": "python"}, "overrides": {"args": ["-c", code]}}


def resource_args(run: Json | None = None, **launch: Any) -> Json:
    spec = {"worker_pool_specs": [POOL], "staging_bucket": "gs://bucket"}
    return {"resource_args": {"gcp-vertex": {"spec": spec, "run": run or {}, "launch": launch}}}


async def nothing(_scene: Scene) -> None:
    """It ends by itself."""


def failing(message: str, code: int = Code.INVALID_ARGUMENT, *, attempt: int = 1) -> Any:
    async def happens(scene: Scene) -> None:
        await scene.end(JobState.JOB_STATE_FAILED, code, message, attempt=attempt)

    return happens


async def fails_after_init(scene: Scene) -> None:
    name = await scene.running()

    async def run() -> Any:
        run_id = scene.queue.item(scene.item_id).associated_run_id
        return scene.queue.sandbox.wandb.run("runs", run_id)

    await until(run)
    message = "The replica workerpool0-0 ran out of memory and exited with a non-zero status of 9(SIGKILL)."
    scene.queue.sandbox.vertex.set_state(name, JobState.JOB_STATE_FAILED, Code.RESOURCE_EXHAUSTED, message)


async def expires(scene: Scene) -> None:
    await scene.end(JobState.JOB_STATE_EXPIRED)


async def is_deleted(scene: Scene) -> None:
    name = await scene.running()
    scene.queue.sandbox.vertex.set_state(name, JobState.JOB_STATE_CANCELLED)
    scene.queue.sandbox.vertex.delete(name)


async def is_cancelled_in_the_console(scene: Scene) -> None:
    scene.queue.sandbox.vertex.cancel(await scene.running())


async def is_stopped_at_wandb(scene: Scene) -> None:
    await scene.running()

    async def run() -> Any:
        run_id = scene.queue.item(scene.item_id).associated_run_id
        return scene.queue.sandbox.wandb.run("runs", run_id)

    scene.queue.sandbox.wandb.runs.stop(await until(run))


async def is_cancelled_in_prefect(scene: Scene) -> None:
    await scene.running()
    await scene.cancel_in_prefect()


async def succeeds_although_it_was_cancelled(scene: Scene) -> None:
    name = await scene.running()
    await scene.cancel_in_prefect()
    scene.queue.sandbox.vertex.set_state(name, JobState.JOB_STATE_CANCELLING)
    scene.queue.sandbox.vertex.set_state(name, JobState.JOB_STATE_SUCCEEDED)


async def is_out_of_luck_twice(scene: Scene) -> None:
    await failing(INTERNAL, Code.INTERNAL, attempt=1)(scene)
    await failing(INTERNAL, Code.INTERNAL, attempt=2)(scene)


@dataclass(frozen=True)
class End:
    """A launch, what happens to it, and how that is to be told.

    `says` are parts of what the flow run's state, the item's failure and the artifact all say.
    """

    name: str
    happens: Callable[[Scene], Awaitable[None]]
    category: str
    state: str
    type: StateType
    item: Mapping[str, Any] = field(default_factory=lambda: program(ENDLESS))
    says: tuple[str, ...] = ()
    item_state: str = "FAILED"
    attempts: int = 1
    warns: tuple[str, ...] = ()


FAILED, CANCELLED, COMPLETED = StateType.FAILED, StateType.CANCELLED, StateType.COMPLETED
ENDS = [
    End(
        "out of memory after wandb.init", fails_after_init, "out-of-memory", "Failed", FAILED,
        item={"docker": {"docker_image": "sandbox/hold"}},
        says=("ran out of memory", "more memory"),
    ),
    End(
        "no such image", nothing, "image", "Failed", FAILED,
        item={"docker": {"docker_image": "example.com/missing:1"}},
        says=("example.com/missing:1", "Artifact Registry Reader"),
    ),
    End("expired", expires, "expired", "Expired", FAILED, says=("expired", "max_wait_duration")),
    End("deleted", is_deleted, "lost", "Lost", FAILED, says=("does not know it any more", "audit log")),
    End(
        "cancelled in the console", is_cancelled_in_the_console, "cancelled-elsewhere",
        "Cancelled", CANCELLED,
        says=("audit log",),
    ),
    End(
        "stopped at W&B", is_stopped_at_wandb, "cancelled", "Cancelled", CANCELLED,
        item={"docker": {"docker_image": "sandbox/hold"}}, says=("W&B",),
    ),
    End(
        "cancelled in Prefect", is_cancelled_in_prefect, "cancelled", "Cancelled", CANCELLED,
        says=("Cancelled in Prefect by a user",),
    ),
    End(
        "cancelled in Prefect and succeeded all the same", succeeds_although_it_was_cancelled, "no-run",
        "Cancelled", CANCELLED, says=("exited successfully",),
    ),
    End(
        "never called wandb.init", nothing, "no-run", "Failed", FAILED,
        item=program("pass"), says=("wandb.init",),
    ),
    End(
        "failed by itself", nothing, "user-code", "Failed", FAILED, item=program("raise SystemExit(3)"),
        says=("exited with 3", "non-zero status of 3"),
    ),
    End(
        "of another entity, failed", nothing, "user-code", "Failed", FAILED,
        item={**program("raise SystemExit(3)"), "entity": "others"}, says=("exited with 3",),
    ),
    End(
        "of another entity, not to be seen", nothing, "succeeded", "Completed", COMPLETED,
        item={**program("pass"), "entity": "others"}, item_state="CLAIMED",
        warns=("whether the run exists cannot be known",),
    ),
    End(
        "preempted", failing(PREEMPTED), "succeeded", "Completed", COMPLETED,
        item=program(SECOND_TIME_LUCKY), item_state="CLAIMED", attempts=2,
        warns=("attempt 2 of this run", "preempted"),
    ),
    End(
        "internal errors", is_out_of_luck_twice, "internal", "Failed", FAILED, attempts=2,
        says=("failed internally",), warns=("attempt 2 of this run",),
    ),
    End(
        "no capacity, fallback to another region", failing(STOCKOUT, Code.RESOURCE_EXHAUSTED), "succeeded",
        "Completed", COMPLETED,
        item={
            **program(SECOND_TIME_LUCKY),
            **resource_args(
                fallbacks=[{"location": "europe-west4", "machine_spec": {"machine_type": "n1-standard-8"}}]
            ),
        },
        item_state="CLAIMED", attempts=2, warns=("fallback 1", "capacity"),
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What became of a launch in all three systems."""

    launch: FlowRun
    item: Any
    jobs: tuple[JobRecord, ...]
    artifact: str
    error_file: str
    category: str | None


@dataclass(frozen=True)
class Drained:
    state: State[Any]
    seen: Mapping[str, Seen]


@pytest.fixture(scope="module")
def drained(prefect_server: PrefectServer) -> Drained:
    with prefect_client_of(prefect_server):
        return asyncio.run(drain_all())


async def drain_all() -> Drained:
    async with Sandbox(queued_seconds=0, pending_seconds=0) as sandbox:
        sandbox.wandb.hide_entity("others")
        queue = LaunchQueue(sandbox, max_jobs=len(ENDS))
        await queue.create(max_relaunches=1, allowed_entities=["others"])
        scenes = {end.name: Scene(queue, queue.push(**{"image": "python", **end.item})) for end in ENDS}
        serving = agent(queues=[queue.name], drain=True, return_state=True)
        async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as group:
            agent_task = group.create_task(_as_coroutine(serving))
            for end in ENDS:
                group.create_task(end.happens(scenes[end.name]))
        await asyncio.to_thread(send_what_is_left)
        async with get_client() as client:
            seen = {name: await see(client, scene) for name, scene in scenes.items()}
        return Drained(agent_task.result(), seen)


async def _as_coroutine(serving: Any) -> State[Any]:
    return cast("State[Any]", await serving)


async def see(client: PrefectClient, scene: Scene) -> Seen:
    launch = await scene.launch()
    artifacts = await client.read_artifacts(
        artifact_filter=ArtifactFilter.model_validate(
            {"flow_run_id": {"any_": [launch.id]}, "type": {"any_": ["markdown"]}}
        )
    )
    return Seen(
        launch=launch,
        item=scene.queue.item(scene.item_id),
        jobs=tuple(sorted(await scene.jobs(), key=lambda job: job.attempt)),
        artifact="".join(str(artifact.data) for artifact in artifacts),
        error_file=error_file(scene),
        category=await category_event(client, launch),
    )


def error_file(scene: Scene) -> str:
    """What the file says that W&B's page shows with a failed item; it is in the agent's own run."""
    item = scene.queue.item(scene.item_id)
    if item.error is None:
        return ""
    wandb = scene.queue.sandbox.wandb
    [path] = item.error["filePaths"]
    text = wandb.file("model-registry", wandb.agents.all()[0].name, path)
    return text.decode() if text is not None else ""


async def category_event(client: PrefectClient, launch: FlowRun) -> str | None:
    """The category in the event of the launch's end, as an automation finds it."""
    resource = f"prefect.flow-run.{launch.id}"
    body = {
        "filter": {
            "event": {"name": ["vertex-launch.launch.ended"]},
            "resource": {"id": [resource]},
            "occurred": {"since": "2020-01-01T00:00:00Z"},
        }
    }

    async def found() -> Any:
        answer = await client.request("POST", "/events/filter", json=body)
        return answer.json()["events"]

    [event] = await until(found)
    return cast("str", event["resource"]["vertex-launch.category"])


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.name)
def test_an_end_is_told_in_all_three_places(end: End, drained: Drained) -> None:
    seen = drained.seen[end.name]

    assert seen.launch.state is not None
    assert (seen.launch.state.name, seen.launch.state.type) == (end.state, end.type), seen.launch.state
    assert seen.item.state == end.item_state
    assert seen.category == end.category
    assert len(seen.jobs) in {end.attempts, end.attempts - (end.category == "lost")}
    if end.item_state == "FAILED":
        told = (seen.launch.state.message or "", seen.item.error["message"], seen.error_file, seen.artifact)
        assert all(part in text for part in end.says for text in told), told
        assert end.category in seen.artifact
        assert "console.cloud.google.com" in seen.artifact
    warnings = " ".join(notice["message"] for notice in seen.item.notices if notice["kind"] == "warning")
    assert all(part in warnings for part in end.warns), warnings


def test_attempts_are_one_run_at_wandb(drained: Drained) -> None:
    [first, second] = drained.seen["preempted"].jobs

    assert first.labels["wandb-run-id"] == second.labels["wandb-run-id"]
    assert (first.labels[ATTEMPT_LABEL], second.labels[ATTEMPT_LABEL]) == ("1", "2")


def test_a_fallback_is_another_region(drained: Drained) -> None:
    [first, second] = drained.seen["no capacity, fallback to another region"].jobs

    assert "/locations/us-central1/" in first.name
    assert "/locations/europe-west4/" in second.name


def test_a_users_error_is_not_launched_again(drained: Drained) -> None:
    assert len(drained.seen["failed by itself"].jobs) == 1
