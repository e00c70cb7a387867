"""`vertex-launch status` and `vertex-launch agent`, on a real Prefect server and the sandbox."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.cli.demo.servers import free_port
from prefect_vertex_launch.cli.main import app
from prefect_vertex_launch.cli.status.queue_reader import open_queue
from prefect_vertex_launch.coordination.prefect_api import open_prefect
from prefect_vertex_launch.sandbox.faults.registry import Fault, What
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import finished, until


@pytest.fixture
async def queue(sandbox: Sandbox, prefect_api: PrefectServer) -> LaunchQueue:
    launch_queue = LaunchQueue(sandbox, max_jobs=1)
    await launch_queue.create()
    return launch_queue


async def vertex_launch(*arguments: str) -> Result:
    """Run the command as its own process would, while the sandbox serves from this event loop."""
    return await finished(asyncio.to_thread(CliRunner().invoke, app, list(arguments)))


async def statuses(queue: LaunchQueue) -> list[dict[str, Any]]:
    result = await vertex_launch("status", "--queue", queue.name, "--json")
    assert result.exit_code == 0, result.output
    (status,) = json.loads(result.stdout)
    return status["items"]


async def give_wrong_key(queue: LaunchQueue) -> None:
    credentials = await WandbCredentials.aload(queue.name)
    credentials.api_key = SecretStr("x" * 40)
    await credentials.asave(queue.name, overwrite=True)


def assert_error_and_hint(result: Result) -> str:
    """The two lines on standard error, and nothing of a traceback anywhere."""
    assert "Traceback" not in result.output
    *_, error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return f"{error}\n{hint}"


async def test_an_item_in_the_queue_waits_for_an_agent_and_the_command_that_starts_one_is_named(
    queue: LaunchQueue,
) -> None:
    item_id = queue.push("python", "-c", "pass")
    (item,) = await statuses(queue)
    assert (item["item"], item["state"], item["item_state"]) == (item_id, "waiting", "PENDING")
    assert f"vertex-launch agent --queue {queue.name}" in item["why"]
    assert item["job"] is None


@pytest.mark.slow
async def test_what_became_of_each_launch_is_told_with_its_links(queue: LaunchQueue) -> None:
    good = queue.push("sandbox/train", name="good")
    bad = queue.push("python", "-c", "raise SystemExit(3)", name="bad")
    broken = queue.push("python", resource_args={"gcp-vertex": {"spec": {"labels": 7}}}, name="broken")

    drained = await vertex_launch("agent", "--queue", queue.name, "--drain")
    items = {item["item"]: item for item in await statuses(queue)}

    assert drained.exit_code == 0, drained.output
    assert "3 launched" in drained.stdout
    assert set(items) == {good, bad, broken}
    assert (items[good]["state"], items[good]["prefect_state"]) == ("succeeded", "Completed")
    assert (items[bad]["state"], items[bad]["prefect_state"]) == ("failed", "Failed")
    assert "exited with 3" in items[bad]["why"]
    assert (items[broken]["state"], items[broken]["job"]) == ("refused", None)
    assert "labels" in items[broken]["why"]
    jobs = {job.display_name: job.name.rsplit("/", 1)[-1] for job in await queue.jobs()}
    assert (items[good]["job"], items[bad]["job"]) == (jobs["good"], jobs["bad"])
    run_id = items[good]["run_id"]
    assert items[good]["wandb_url"] == (
        f"{queue.sandbox.wandb_url}/{queue.sandbox.entity}/runs/runs/{run_id}"
    )
    assert items[good]["job"] in items[good]["vertex_url"]
    assert "/runs/flow-run/" in items[good]["prefect_url"]


async def test_piped_output_has_one_line_for_each_item(queue: LaunchQueue) -> None:
    item_ids = [queue.push("python", name=name) for name in ("one", "two")]
    result = await vertex_launch("status", "--queue", queue.name)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"# {queue.sandbox.entity}/{queue.name} → test-project/us-central1")
    assert [line.split()[0] for line in lines[2:] if line] == item_ids


@pytest.mark.slow
async def test_while_a_job_runs_its_slot_is_counted_and_the_next_item_waits_for_it(
    queue: LaunchQueue,
) -> None:
    from prefect_vertex_launch.flows.agent import agent

    running = queue.push("python", "-c", "import time; time.sleep(600)", name="long")
    waiting = queue.push("python", "-c", "pass", name="next")
    serving = asyncio.create_task(agent(queues=[queue.name], return_state=True))
    try:
        async with open_prefect() as client, open_queue(client, queue.name) as reader:

            async def has_a_running_job() -> Any:
                status = await reader.read()
                states = {item.item: item.state for item in status.items}
                return status if states.get(running) == "running" else None

            status = await until(has_a_running_job)
        items = {item.item: item for item in status.items}
        assert (status.slots_taken, status.agents) == (1, 1)
        assert items[running].why == "the job runs"
        assert items[waiting].why == "1 of 1 slots are taken"
        await queue.create(location="europe-west4")
        [_, moved] = await statuses(queue)
        assert (moved["item"], moved["state"]) == (running, "running")
        await queue.sandbox.faults.add(
            Fault(server="vertex", what=What.ANSWER, operation="ListCustomJobs", status=403, times=None)
        )
        denied = await vertex_launch("status", "--queue", queue.name)
        assert "its job, if there is one, could not be read" in denied.stdout
    finally:
        serving.cancel()
        await asyncio.wait({serving})


async def test_when_wandb_does_not_accept_the_key_the_rest_is_shown_and_the_command_fails(
    queue: LaunchQueue,
) -> None:
    await give_wrong_key(queue)
    result = await vertex_launch("status", "--queue", queue.name)
    assert result.exit_code == 1
    assert f"{queue.name}):" in result.stdout
    assert "error: " in result.stdout


async def test_an_agent_whose_key_is_not_accepted_is_not_ready(queue: LaunchQueue) -> None:
    await give_wrong_key(queue)
    result = await vertex_launch("agent", "--queue", queue.name, "--drain")
    assert result.exit_code == 3
    assert_error_and_hint(result)


@pytest.mark.parametrize("command", ["agent", "status"])
async def test_a_block_that_does_not_exist_is_answered_with_the_ones_there_are(
    queue: LaunchQueue, command: str
) -> None:
    result = await vertex_launch(command, "--queue", f"{queue.name}x")
    assert result.exit_code == 3
    assert f"did you mean '{queue.name}'?" in assert_error_and_hint(result)


@pytest.mark.parametrize("command", [["agent", "--queue", "any"], ["status"]])
async def test_a_prefect_server_that_is_away_is_named(prefect_api: PrefectServer, command: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        result = await vertex_launch(*command)
    assert result.exit_code == 3
    assert url in assert_error_and_hint(result)
