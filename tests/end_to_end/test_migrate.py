"""`vertex-launch migrate`: an agent's file, its queues at W&B, and the blocks and limits it becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from typer.testing import CliRunner, Result

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.cli.main import app
from prefect_vertex_launch.coordination.prefect_api import block_names
from prefect_vertex_launch.core.identity import QueueIdentity, server_name
from prefect_vertex_launch.core.shared_limit import shared_limit_name
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.sandbox.wandb.backend import LAUNCH_PROJECT
from tests.end_to_end.launch_queue import POOL
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import finished

SPEC: dict[str, Any] = {"worker_pool_specs": [POOL], "staging_bucket": "gs://bucket"}
CONFIG: dict[str, Any] = {"spec": SPEC, "run": {"timeout": 600}}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A sandbox with an entity of its own: blocks and limits are named after it."""
    async with Sandbox(queued_seconds=0, pending_seconds=0, entity=f"team-{uuid4().hex[:6]}") as running:
        yield running


@pytest.fixture
def here(
    sandbox: Sandbox, prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The directory and the environment that W&B's agent ran with."""
    account = tmp_path / "account.json"
    account.write_text(json.dumps(sandbox.service_account_info(f"{sandbox.entity}-project")))
    for name in ("WANDB_ENTITY", "WANDB_LAUNCH_MAX_JOBS", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
    monkeypatch.setenv("WANDB_API_KEY", sandbox.api_key)
    monkeypatch.setenv("WANDB_BASE_URL", sandbox.wandb_url)
    return tmp_path


def agent_file(here: Path, sandbox: Sandbox, **fields: Any) -> str:
    """Write the agent's file; YAML takes JSON."""
    path = here / "launch-config.yaml"
    common = {"entity": sandbox.entity, "environment": {"type": "gcp", "region": "us-central1"}}
    path.write_text(json.dumps({**common, **fields}))
    return str(path)


def make_queue(
    sandbox: Sandbox, config: dict[str, Any] | None = None, *, resource: str = "gcp-vertex"
) -> str:
    name = f"Q_{uuid4().hex[:6]}"
    sandbox.wandb.ensure_project(sandbox.entity, LAUNCH_PROJECT)
    sandbox.wandb.queues.upsert(
        sandbox.entity,
        LAUNCH_PROJECT,
        name,
        created_by="somebody",
        resource=resource,
        config=json.dumps({"resource_args": {resource: config or CONFIG}}),
        variables=None,
        prioritization_mode=None,
        external_links=None,
    )
    return name


async def vertex_launch(*arguments: str) -> Result:
    """Run the command as its own process would, while the sandbox serves from this event loop."""
    return await finished(asyncio.to_thread(CliRunner().invoke, app, list(arguments)))


def block_of(queue: str) -> str:
    return queue.lower().replace("_", "-")


async def existing_blocks() -> list[str]:
    async with get_client() as client:
        return await block_names(client)


async def size_of_limit(name: str) -> int | None:
    async with get_client() as client:
        try:
            return (await client.read_global_concurrency_limit_by_name(name)).limit
        except ObjectNotFound:
            return None


def limit_of(sandbox: Sandbox, queue: str) -> str:
    return QueueIdentity(server_name(sandbox.wandb_url), sandbox.entity, queue).limit_name


async def test_without_apply_all_is_said_and_nothing_is_written(here: Path, sandbox: Sandbox) -> None:
    queue = make_queue(sandbox)
    path = agent_file(here, sandbox, queues=[queue], max_jobs=4, builder={"type": "noop"})

    result = await vertex_launch("migrate", path, "--output", str(here / "deploy.sh"))

    assert result.exit_code == 0, result.output
    rows = {line.split(" | ")[0].strip(): line for line in result.stdout.splitlines() if " | " in line}
    assert "Prefect limit: max_jobs 4" in rows["max_jobs"]
    assert "has no meaning here because" in rows["builder.type"]
    assert "block field" in rows["WANDB_BASE_URL"]
    assert f"VertexLaunchQueue block {block_of(queue)}: " in result.stdout
    limit = limit_of(sandbox, queue)
    assert f"limit {limit}: 4" in result.stdout
    assert "nothing was written" in result.stdout
    assert sandbox.api_key not in result.output
    assert block_of(queue) not in await existing_blocks()
    assert await size_of_limit(limit) is None
    assert not (here / "deploy.sh").exists()


@pytest.mark.slow
async def test_two_queues_are_moved_and_an_agent_drains_both(here: Path, sandbox: Sandbox) -> None:
    queues = [make_queue(sandbox), make_queue(sandbox)]
    blocks = [block_of(queue) for queue in queues]
    path = agent_file(here, sandbox, queues=queues, max_jobs=3, stopped_run_timeout=7)

    result = await vertex_launch("migrate", path, "--apply", "--output", str(here / "deploy.sh"))

    assert result.exit_code == 0, result.output
    assert sandbox.api_key not in result.output
    shared = shared_limit_name(server_name(sandbox.wandb_url), sandbox.entity)
    assert await size_of_limit(shared) == 3
    for queue, name in zip(queues, blocks, strict=True):
        block = await VertexLaunchQueue.aload(name)
        assert (block.entity, block.queue, block.location) == (sandbox.entity, queue, "us-central1")
        assert block.project == f"{sandbox.entity}-project"
        assert (block.max_jobs, block.shared_limits, block.stop_grace_seconds) == (-1, [shared], 7.0)
    commands = (here / "deploy.sh").read_text()
    assert all(f"vertex-launch deploy --queue {name} --pool " in commands for name in blocks)
    assert f"vertex-launch agent --queue {blocks[0]} --queue {blocks[1]}" in commands

    # What somebody sets in a block by hand is kept when the command runs again.
    for name in blocks:
        block = await VertexLaunchQueue.aload(name)
        block.endpoint, block.poll_seconds = sandbox.vertex_grpc_url, 0.1
        block.watch_seconds = 0.2
        await block.asave(name, overwrite=True)
    again = await vertex_launch("migrate", path, "--apply")
    assert again.exit_code == 0, again.output
    written = again.stdout.partition("# written\n")[2].partition("\n\n")[0].splitlines()
    assert len(written) == 5
    assert all(line.endswith(": unchanged") for line in written), written

    items = [
        sandbox.wandb.push_raw(
            queue,
            json.dumps(
                {
                    "entity": sandbox.entity,
                    "project": "runs",
                    "docker": {"docker_image": "sandbox/train"},
                    "resource": "gcp-vertex",
                    "resource_args": {"gcp-vertex": CONFIG},
                }
            ),
        )
        for queue in queues
    ]
    await finished(agent(queues=blocks, drain=True, return_state=True))
    for item_id in items:
        item = sandbox.wandb.item(item_id)
        assert item is not None
        assert item.state == "CLAIMED", item
        run = sandbox.wandb.run("runs", str(item.associated_run_id))
        assert run is not None
        assert run.state == "finished"


async def test_a_change_of_the_file_changes_only_what_it_says(here: Path, sandbox: Sandbox) -> None:
    queue = make_queue(sandbox)
    assert (
        await vertex_launch("migrate", agent_file(here, sandbox, queues=[queue]), "--apply")
    ).exit_code == 0

    block = await VertexLaunchQueue.aload(block_of(queue))
    block.poll_seconds = 0.5
    await block.asave(block_of(queue), overwrite=True)

    result = await vertex_launch("migrate", agent_file(here, sandbox, queues=[queue], max_jobs=9), "--apply")

    assert f"VertexLaunchQueue block {block_of(queue)}: changed max_jobs\n" in result.stdout
    assert (await VertexLaunchQueue.aload(block_of(queue))).poll_seconds == 0.5
    limit = limit_of(sandbox, queue)
    assert f"limit {limit}: changed from 1 to 9" in result.stdout
    assert await size_of_limit(limit) == 9


async def test_all_that_prevents_it_is_said_at_once_and_nothing_is_written(
    here: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(here / "none.json"))
    good, other = make_queue(sandbox), make_queue(sandbox, resource="kubernetes")
    broken = make_queue(sandbox, {"spec": {**SPEC, "labells": {}}})
    queues = [good, other, broken, f"{good}x"]
    path = agent_file(here, sandbox, queues=queues, max_jobs=0, builder={"type": "docker"}, entiti="x")

    result = await vertex_launch("migrate", path, "--apply")

    assert result.exit_code == 1, result.output
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    for expected in (
        "max_jobs: 0 jobs at once",
        "entiti: 'entiti' is not a field",
        f"{sandbox.entity}/{other}: its resource is kubernetes",
        "Did you mean labels?",
        f"Did you mean {good}?",
        "Add --project PROJECT",
    ):
        assert any(expected in problem for problem in problems), expected
    assert len(problems) == 6
    assert result.stderr.startswith("error: 6 findings prevent the move\nhint: ")
    assert block_of(good) not in await existing_blocks()


@pytest.mark.slow
async def test_variables_of_the_agent_are_allowed_only_when_asked_and_secrets_never(
    here: Path, sandbox: Sandbox
) -> None:
    pool = {**POOL, "container_spec": {"image_uri": "${image_uri}", "args": ["${BUCKET}", "${DB_PASSWORD}"]}}
    queue = make_queue(sandbox, {"spec": {**SPEC, "worker_pool_specs": [pool]}})
    path = agent_file(here, sandbox, queues=[queue])

    told = await vertex_launch("migrate", path, "--apply")
    assert "${BUCKET}" in told.stdout
    assert "--allow-macros" in told.stdout
    assert (await VertexLaunchQueue.aload(block_of(queue))).allowed_macros == []

    allowed = await vertex_launch("migrate", path, "--apply", "--allow-macros")
    assert "DB_PASSWORD" in allowed.stdout
    assert (await VertexLaunchQueue.aload(block_of(queue))).allowed_macros == ["BUCKET"]


async def test_what_the_agent_dropped_is_listed_for_each_queue(here: Path, sandbox: Sandbox) -> None:
    queue = make_queue(sandbox, {"spec": SPEC, "run": {"scheduling_strategy": "SPOT"}})
    result = await vertex_launch("migrate", agent_file(here, sandbox, queues=[queue]))
    where = f"queue {sandbox.entity}/{queue}.run.scheduling_strategy"
    assert f"changed: {where}: W&B's agent dropped it; it is honoured now" in result.stdout


async def test_without_an_entity_the_default_one_of_the_key_is_asked_for(
    here: Path, sandbox: Sandbox
) -> None:
    queue = make_queue(sandbox)
    result = await vertex_launch("migrate", agent_file(here, sandbox, entity=None, queues=[queue]))
    assert result.exit_code == 0, result.output
    assert f"entity='{sandbox.entity}'" in result.stdout


async def test_blocks_that_exist_are_used_and_one_that_does_not_is_named(
    here: Path, sandbox: Sandbox
) -> None:
    queue, second = make_queue(sandbox), make_queue(sandbox)
    await vertex_launch("migrate", agent_file(here, sandbox, queues=[queue]), "--apply")
    own = ["--wandb-credentials", f"wandb-{sandbox.entity}", "--gcp-credentials"]
    path = agent_file(here, sandbox, queues=[second])

    used = await vertex_launch("migrate", path, "--apply", *own, f"gcp-{sandbox.entity}-project")
    assert used.exit_code == 0, used.output
    assert used.stdout.count("used as it is") == 2

    missing = await vertex_launch("migrate", path, *own, "nowhere")
    assert missing.exit_code == 3
    assert "'nowhere'" in missing.stderr


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 2, "there is no "),
        (b"\xff\xfe", 2, "it is not UTF-8"),
        (b"entity: [x\nqueues: secret-text", 1, "is not YAML"),
        (b"!!python/object:os.system {}", 1, "is not YAML"),
    ],
)
async def test_a_file_that_cannot_be_read_is_named_without_showing_it(
    here: Path, text: bytes | None, code: int, said: str
) -> None:
    path = here / "broken.yaml"
    if text is not None:
        path.write_bytes(text)
    result = await vertex_launch("migrate", str(path))
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert "secret-text" not in result.output


async def test_a_key_that_wandb_does_not_accept_comes_after_the_fields(
    here: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    result = await vertex_launch("migrate", agent_file(here, sandbox, queues=["q"]))
    assert result.exit_code == 3
    assert "stop_grace_seconds" in result.stdout
    assert result.stderr.startswith("error: ")
