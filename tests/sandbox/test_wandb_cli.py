"""W&B's processes against the sandbox: wandb launch, jobs, a launched run, W&B's own launch agent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from prefect_vertex_launch.core.errors import NotFound
from prefect_vertex_launch.wandb.files import AGENT_JOB_TYPE, error_file
from tests.adapters.queue_client import open_queue
from tests.eventually import finished, until
from tests.sandbox.real_wandb import WandbClient, WandbSandbox

pytestmark = pytest.mark.asyncio(loop_scope="session")

_TARGET = ("--entity", "team", "--project", "cli")
_HOLD = """
import time, wandb
run = wandb.init()
while True:
    run.log({"beat": 1})
    time.sleep(0.1)
"""


def make_queue(sandbox: WandbSandbox, name: str, *, priorities: bool = False) -> None:
    sandbox.backend.queues.upsert(
        "team",
        "model-registry",
        name,
        created_by="ann",
        resource="gcp-vertex",
        config=json.dumps({"resource_args": {"gcp-vertex": {"spec": {"labels": {"size": "{{size}}"}}}}}),
        variables=json.dumps({"size": {"schema": {"type": "string", "default": "small"}}}),
        prioritization_mode="V0" if priorities else None,
        external_links=None,
    )


def specs(sandbox: WandbSandbox, queue: str) -> list[dict]:
    items = sandbox.backend.items
    return [json.loads(items.run_spec_text(item)) for item in items.of_queue(sandbox.backend.queue(queue))]


async def stop_a_launched_job(client: WandbClient, sandbox: WandbSandbox) -> dict[str, Any]:
    """Start a job with a launch's environment, stop its run, and tell what was seen."""
    job = await sandbox.start(
        "python",
        "-c",
        _HOLD,
        WANDB_LAUNCH="True",
        WANDB_ENTITY="team",
        WANDB_PROJECT="held",
        WANDB_RUN_ID="held1",
        WANDB_CONFIG=json.dumps({"lr": 0.5}),
        WANDB_LAUNCH_QUEUE_NAME="queue",
        WANDB_LAUNCH_QUEUE_ENTITY="team",
        WANDB_LAUNCH_TRACE_ID="item1",
    )
    try:
        await until(lambda: bool(run := sandbox.backend.run("held", "held1")) and bool(run.line_counts))
        look = (
            "run = wandb.Api().run('team/held/held1')\n"
            "stopped = launch_api.check_stop_requested('held', 'team', 'held1')\n"
            "result = [run.state, stopped, run.config, run.rawconfig['_wandb']['launch_trace_id']]"
        )
        before = await client.run(look)
        await client.run("api.run('team/held/held1').stop()")
        output, _ = await finished(job.communicate())
        return {
            "before": before,
            "after": await client.run(look),
            "exit": job.returncode,
            "output": output.decode(),
        }
    finally:
        if job.returncode is None:
            job.kill()


async def run_wandbs_agent(sandbox: WandbSandbox) -> dict[str, Any]:
    """Let `wandb launch-agent` take one item, then stop it as the UI would, and tell what it left."""
    backend = sandbox.backend
    make_queue(sandbox, "cli-agent")
    item_id = backend.push_raw(
        "cli-agent",
        json.dumps(
            {"entity": "team", "project": "cli", "docker": {"docker_image": "i:1"}, "resource": "gcp-vertex"}
        ),
    )
    agent = await sandbox.start(
        "python", "-m", "wandb", "launch-agent", "--entity", "team", "--queue", "cli-agent"
    )
    try:
        output = asyncio.create_task(agent.communicate())
        await until(lambda: backend.item(item_id).state == "FAILED")
        (row,) = (row for row in backend.agents.all() if row.queue_ids == [backend.queue("cli-agent").id])
        backend.stop_polling(row.id)
        await finished(output)
        return {"item": backend.item(item_id), "row": row}
    finally:
        if agent.returncode is None:
            agent.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def waiting(wandb_client, wandb_sandbox: WandbSandbox) -> AsyncIterator[dict[str, asyncio.Task]]:
    """Two scenarios that mostly wait for W&B's own timers (15 s and 10 s) while the other tests go on."""
    tasks = {
        "stop": asyncio.create_task(stop_a_launched_job(wandb_client, wandb_sandbox)),
        "agent": asyncio.create_task(run_wandbs_agent(wandb_sandbox)),
    }
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.slow
async def test_wandb_launch_pushes_an_image_with_everything_it_was_given(wandb_sandbox: WandbSandbox):
    make_queue(wandb_sandbox, "cli-image", priorities=True)
    overrides = {"overrides": {"args": ["--lr", "0.1"], "run_config": {"epochs": 2}}}
    launch = ("launch", "--docker-image", "image:1", "--queue", "cli-image", *_TARGET)

    full, refused = await asyncio.gather(
        wandb_sandbox.wandb(
            *launch,
            "--name",
            "nice",
            "--priority",
            "critical",
            "--set-var",
            "size=large",
            "--config",
            json.dumps(overrides),
        ),
        wandb_sandbox.wandb(*launch, "--set-var", "colour=red"),
    )

    assert full.exit_code == 0, full.output
    assert "Added run to queue cli-image." in full.output
    (spec,) = specs(wandb_sandbox, "cli-image")
    assert (spec["entity"], spec["project"], spec["name"]) == ("team", "cli", "nice")
    assert spec["docker"] == {"docker_image": "image:1"}
    assert spec["overrides"] == overrides["overrides"]
    assert spec["resource_args"] == {"gcp-vertex": {"spec": {"labels": {"size": "large"}}}}
    (item,) = wandb_sandbox.backend.items.of_queue(wandb_sandbox.backend.queue("cli-image"))
    assert (item.priority, item.state) == (0, "PENDING")
    assert refused.exit_code != 0


@pytest.mark.slow
async def test_wandb_launch_fails_for_an_unknown_queue_and_for_a_wrong_key(wandb_sandbox: WandbSandbox):
    make_queue(wandb_sandbox, "cli-refused")
    launch = ("launch", "--docker-image", "image:1", *_TARGET, "--queue")

    unknown, stranger = await asyncio.gather(
        wandb_sandbox.wandb(*launch, "cli-unknown"),
        wandb_sandbox.wandb(*launch, "cli-refused", WANDB_API_KEY="b" * 40),
    )

    assert unknown.exit_code != 0
    assert "Unable to push to run queue cli-unknown. Queue not found." in unknown.output
    assert stranger.exit_code != 0
    assert "invalid API key" in stranger.output
    assert specs(wandb_sandbox, "cli-refused") == []


@pytest.mark.slow
async def test_an_image_job_is_created_launched_and_used_by_its_run(
    wandb_client, wandb_sandbox: WandbSandbox
):
    make_queue(wandb_sandbox, "cli-job")
    create = ("job", "create", "image", "registry:5000/image:1", "--name", "trainer", *_TARGET)

    created = await wandb_sandbox.wandb(*create)
    assert created.exit_code == 0, created.output
    assert "Created job: team/cli/trainer:v0, with aliases: 1, latest" in created.output

    launched, used = await asyncio.gather(
        wandb_sandbox.wandb("launch", "--job", "team/cli/trainer:latest", "--queue", "cli-job", *_TARGET),
        wandb_sandbox.python(
            "import wandb; wandb.init().finish()",
            WANDB_LAUNCH="True",
            WANDB_ENTITY="team",
            WANDB_PROJECT="cli",
            WANDB_RUN_ID="job-run",
            WANDB_ARTIFACTS=json.dumps({"_wandb_job": "team/cli/trainer:v0"}),
        ),
    )
    assert launched.exit_code == 0, launched.output
    (spec,) = specs(wandb_sandbox, "cli-job")
    assert spec["job"] == "team/cli/trainer:latest"
    assert used.exit_code == 0, used.output
    assert "ERROR" not in used.output
    assert wandb_sandbox.backend.run("cli", "job-run").state == "finished"

    source = await wandb_client.run("result = api.job('team/cli/trainer:v0')._job_info")
    assert source["source_type"] == "image"
    assert source["source"] == {"image": "registry:5000/image:1"}
    listed = await wandb_client.run("result = api.list_jobs('team', 'cli')")
    assert listed[0]["edges"][0]["node"]["artifactSequence"]["name"] == "trainer"
    # The hidden run that carried the artifact is deleted by the client.
    assert [run.name for run in wandb_sandbox.backend.runs.of_project("team", "cli")] == ["job-run"]

    # A changed job is a new version and takes `latest`; our own client reads it as W&B's does.
    changed = await wandb_sandbox.wandb(*create[:3], "image:2", *create[4:])
    assert changed.exit_code == 0, changed.output
    for name, image in {"latest": "image:2", "v0": "registry:5000/image:1"}.items():
        source = await wandb_client.run(f"result = api.job('team/cli/trainer:{name}')._job_info['source']")
        assert source == {"image": image}
        async with open_queue(wandb_sandbox.url) as queue:
            read = await queue.read_job("team", "cli", f"trainer:{name}")
        assert (read.kind, read.image_uri, read.entry_point) == ("image", image, ())
    async with open_queue(wandb_sandbox.url) as queue:
        assert (await queue.read_job("team", "cli", "trainer")).image_uri == "image:2"
        with pytest.raises(NotFound, match="team/cli/trainer:v9"):
            await queue.read_job("team", "cli", "trainer:v9")


@pytest.mark.slow
async def test_wandbs_own_launch_agent_registers_polls_and_takes_an_item(
    waiting, wandb_sandbox: WandbSandbox
):
    """It has no Google Cloud here, so it fails the item: the whole way through the queue, both ends W&B's."""
    seen = await waiting["agent"]
    item, row = seen["item"], seen["row"]

    assert item.associated_run_id is not None
    assert item.agent_id == row.id
    assert item.error["stage"] == "agent"
    assert row.heartbeat_at is not None
    assert row.stop_polling
    assert "RUNNING" in row.statuses

    # What went wrong is where our own client puts it, too.
    assert item.error["filePaths"] == [error_file(item.id)]
    written = wandb_sandbox.backend.file("model-registry", row.name, error_file(item.id))
    assert written is not None
    assert b"Traceback" in written
    run = wandb_sandbox.backend.run("model-registry", row.name)
    assert (run.job_type, run.state) == (AGENT_JOB_TYPE, "finished")


@pytest.mark.slow
async def test_a_stop_interrupts_a_launched_job_and_shows_as_stopped(waiting):
    """The job's run id, project and config come from the launch's environment."""
    seen = await waiting["stop"]

    assert seen["before"] == ["running", False, {"lr": 0.5}, "item1"]
    assert "KeyboardInterrupt" in seen["output"]
    assert seen["exit"] != 0
    assert seen["after"][:2] == ["killed", True]
