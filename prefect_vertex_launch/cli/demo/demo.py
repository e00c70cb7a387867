"""The demo: eight runs from a W&B queue through Vertex AI and back, on local servers.

It uses what a user uses: `wandb launch` to push, the blocks, the agent flow, W&B's public API to stop
a run and to read what became of all. Everything it starts ends with it, and everything it writes is in
one temporary directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_vertex_launch.cli.demo.runs import POOL, RUNS, DemoRun, Outcome
from prefect_vertex_launch.cli.demo.servers import (
    SandboxAddress,
    free_port,
    prefect_server,
    private_environment,
    sandbox,
    until_healthy,
)
from prefect_vertex_launch.cli.errors import FAILED, OK, CommandError

if TYPE_CHECKING:
    from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
    from prefect_vertex_launch.cli.demo.view import DemoView
    from prefect_vertex_launch.cli.status.item_status import ItemStatus
    from prefect_vertex_launch.cli.status.queue_reader import QueueReader, QueueStatus

ENTITY, PROJECT, QUEUE, BLOCK = "sandbox", "demo", "vertex-demo", "demo"
GOOGLE_PROJECT, LOCATION = "demo-project", "us-central1"
PUSHES_AT_ONCE = 3
MAX_JOBS = 3
# The agent drains the queue within half a minute; one that does not is a failure, not a hang.
MAX_RUNTIME_MINUTES = 3.0
LOOK_SECONDS = 1.0
END_SECONDS = 10.0


async def run_demo(*, keep: bool) -> int:
    """Run the demo and return the exit code: 0 only if every run came out as it should.

    The process is the demo's own: its environment is replaced, and SIGTERM ends it with all that it
    started. Raises CommandError when a server does not start or a run cannot be pushed.
    """
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="vertex-launch-demo-", ignore_cleanup_errors=True) as directory:
        return await _demo(Path(directory), keep=keep)


async def _demo(home: Path, *, keep: bool) -> int:
    started = time.monotonic()
    port = free_port()
    environment = private_environment(home, port, os.environ)
    (home / "wandb").mkdir()  # without it wandb's command line writes its log outside of this directory
    os.environ.clear()
    os.environ.update(environment)
    async with prefect_server(home, port) as server, sandbox(home, ENTITY) as address:
        try:
            return await _run(home, port, server, address, started=started, keep=keep)
        finally:
            await _end_tasks()
            await _send_what_is_left()


async def _run(
    home: Path,
    port: int,
    server: asyncio.subprocess.Process,
    address: SandboxAddress,
    *,
    started: float,
    keep: bool,
) -> int:
    # Only now, in its new environment, may this process import Prefect.
    from prefect_vertex_launch.cli.demo.view import DemoView

    view = DemoView(started)
    view.say(f"Sandbox up: W&B at {address.wandb_url}, Vertex AI at {address.vertex_grpc_url}.")
    block = await asyncio.to_thread(_block, address)
    await block.aupsert_queue()
    view.say(f"Queue {ENTITY}/{QUEUE} created. Pushing {len(RUNS)} runs with `wandb launch` …")
    async with asyncio.TaskGroup() as tasks:
        await _push(RUNS[0], home, address)
        pushing = tasks.create_task(_push_all(RUNS[1:], home, address))
        await until_healthy(server, home, port)
        await _save(block)
        view.say(f"Prefect up. The agent takes the runs, at most {MAX_JOBS} at once.")
        outcomes = await _serve(view, block, pushing)
    is_expected = view.show_outcomes(outcomes)
    if keep:
        await _keep(view, port)
    return OK if is_expected else FAILED


async def _end_tasks() -> None:
    """End what a failure or Ctrl-C left: flow runs say so to Prefect only while it is up."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=END_SECONDS)


async def _send_what_is_left() -> None:
    """Send the logs and events that wait: at exit Prefect would try a server that is gone for a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        draining = worker.drain_all(timeout=END_SECONDS)
        assert not isinstance(draining, tuple), "inside of an event loop it is awaited"
        await draining


async def _keep(view: DemoView, port: int) -> None:
    view.say(f"Prefect UI: http://127.0.0.1:{port}   Ctrl-C ends everything.")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


def _block(address: SandboxAddress) -> VertexLaunchQueue:
    from prefect_gcp.credentials import GcpCredentials
    from pydantic import SecretStr

    from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
    from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials

    return VertexLaunchQueue(
        entity=ENTITY,
        queue=QUEUE,
        project=GOOGLE_PROJECT,
        location=LOCATION,
        staging_bucket="gs://demo-staging",
        wandb_credentials=WandbCredentials(api_key=SecretStr(address.api_key), base_url=address.wandb_url),
        gcp_credentials=GcpCredentials.model_validate(
            {"service_account_info": address.service_account_info(), "project": GOOGLE_PROJECT}
        ),
        max_jobs=MAX_JOBS,
        spec={"worker_pool_specs": [POOL]},
        poll_seconds=0.5,
        watch_seconds=1.0,
        stop_grace_seconds=0.0,
        init_grace_seconds=5.0,
        endpoint=address.vertex_grpc_url,
    )


async def _save(block: VertexLaunchQueue) -> None:
    await block.wandb_credentials.asave("demo", overwrite=True)
    await block.gcp_credentials.asave("demo", overwrite=True)
    await block.asave(BLOCK, overwrite=True)


async def _push_all(runs: Sequence[DemoRun], home: Path, address: SandboxAddress) -> None:
    gate = asyncio.Semaphore(PUSHES_AT_ONCE)

    async def push(run: DemoRun) -> None:
        async with gate:
            await _push(run, home, address)

    async with asyncio.TaskGroup() as pushes:
        for run in runs:
            pushes.create_task(push(run))


async def _push(run: DemoRun, home: Path, address: SandboxAddress) -> None:
    """Push one run with wandb's own command line."""
    config_file = home / f"{run.name}.json"
    config_file.write_text(json.dumps({"overrides": dict(run.overrides)}))
    command = [
        sys.executable, "-m", "wandb", "launch", "--docker-image", run.image, "--name", run.name,
        "--queue", QUEUE, "--entity", ENTITY, "--project", PROJECT, "--config", str(config_file),
    ]  # fmt: skip
    if run.entry_point is not None:
        command += ["--entry-point", run.entry_point]
    if run.resource_args is not None:
        resource_file = home / f"{run.name}-resource.json"
        resource_file.write_text(json.dumps(run.resource_args))
        command += ["--resource", "gcp-vertex", "--resource-args", str(resource_file)]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "WANDB_API_KEY": address.api_key, "WANDB_BASE_URL": address.wandb_url},
        cwd=home,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Ctrl-C is this program's: it would be told of a failed `wandb launch` first.
        start_new_session=True,
    )
    try:
        output = (await process.communicate())[0].decode(errors="replace")
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode != 0:
        raise CommandError(f"`wandb launch` failed for {run.name}:\n{output}", "run the demo again")


@dataclass(eq=False)
class _Watch:
    """Looks at the queue while the agent works: shows it, and stops the run that is to be stopped."""

    view: DemoView
    reader: QueueReader
    api: Any
    pushing: asyncio.Task[None]
    has_stopped: bool = False

    async def look(self) -> None:
        """Look once."""
        status = await self.reader.read()
        self.view.show_progress(status)
        if self.pushing.done() and not self.has_stopped:
            self.has_stopped = await self._stop(status)

    async def _stop(self, status: QueueStatus) -> bool:
        """Stop the long run as the button on its page does, once it runs at W&B."""
        to_stop = {run.name for run in RUNS if run.is_stopped}
        item = next((item for item in status.items if item.run in to_stop), None)
        if item is None or item.job_state != "running":
            return False
        return await asyncio.to_thread(_stop_running, self.api, item)


def _stop_running(api: Any, item: ItemStatus) -> bool:
    run = _wandb_run(api, item)
    if run is None or run.state != "running":
        return False
    run.stop()
    return True


async def _serve(view: DemoView, block: VertexLaunchQueue, pushing: asyncio.Task[None]) -> dict[str, Outcome]:
    """Run the agent until the queue is drained, and return what became of each run."""
    from prefect_vertex_launch.cli.status.queue_reader import open_queue
    from prefect_vertex_launch.coordination.prefect_api import open_prefect
    from prefect_vertex_launch.flows.agent import agent

    async with open_prefect() as client, open_queue(client, BLOCK) as reader:
        api = await asyncio.to_thread(block.wandb_credentials.get_client)
        watch = _Watch(view, reader, api, pushing)
        with view.progress():
            async with asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(_keep_looking(watch))
                state = await agent(  # pyright: ignore[reportGeneralTypeIssues] - Prefect types an async flow as its result
                    queues=[BLOCK], drain=True, max_runtime_minutes=MAX_RUNTIME_MINUTES, return_state=True
                )
                looking.cancel()
            await watch.look()
        view.say(f"Agent {state.name}: {state.message}")
        status = await reader.read()
        by_name = {item.run: item for item in status.items}
        outcomes: dict[str, Outcome] = {}
        for run in RUNS:
            item = by_name.get(run.name)
            outcomes[run.name] = (
                Outcome(message="it never left the queue")
                if item is None
                else await asyncio.to_thread(_outcome, api, item)
            )
        return outcomes


async def _keep_looking(watch: _Watch) -> None:
    while True:
        await watch.look()
        await asyncio.sleep(LOOK_SECONDS)


def _outcome(api: Any, item: ItemStatus) -> Outcome:
    """Read a run back from W&B; the job and the flow run are in `item`, read from Vertex AI and Prefect."""
    queued = api.queued_run(ENTITY, PROJECT, QUEUE, item.item, "model-registry")
    run = _wandb_run(api, item)
    return Outcome(
        item=queued.state,
        run=run.state if run is not None else None,
        job=item.job_state,
        launch=item.prefect_state,
        summary={key: run.summary.get(key) for key in run.summary.keys()} if run is not None else {},  # noqa: SIM118 - W&B's summary cannot be iterated over
        config=dict(run.config) if run is not None else {},
        message=item.why,
    )


def _wandb_run(api: Any, item: ItemStatus) -> Any:
    """Return the run as W&B's public API has it now, None for no such run."""
    if item.run_id is None:
        return None
    from wandb.errors import CommError

    api.flush()
    try:
        return api.run(f"{ENTITY}/{PROJECT}/{item.run_id}")
    except (ValueError, CommError):
        return None
