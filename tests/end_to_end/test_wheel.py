"""The wheel beside somebody's project: installed alone, in a folder with packages of the user's own.

From the package to the end of a run: a server that knows the blocks, deployments without a clone, a worker
that serves the queue, and a push by the form. All waits end with what they wait for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from prefect_vertex_launch.cli.demo.servers import free_port
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer, prefect_client_of, send_what_is_left
from tests.end_to_end.shared_prefect import IN_MEMORY, clean_environment

CHECKOUT = Path(__file__).parents[2]
OWN_PACKAGES = ("flows", "blocks", "tests")

# The limit is there for what hangs; a slow machine takes as long as it takes.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800), pytest.mark.slow]


@dataclass(frozen=True)
class Project:
    """A folder of the user's, and the environment in which the wheel is installed."""

    wheel: Path
    python: Path
    folder: Path

    async def run(self, environment: dict[str, str], *command: str) -> str:
        """Run a command in the folder and return what it printed."""
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, cwd=self.folder, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output = (await process.communicate())[0].decode()
        assert process.returncode == 0, output
        return output

    def prefect(self, *arguments: str) -> tuple[str, ...]:
        """Return the command `prefect`, which as a program of its own does not look in the folder first."""
        return (str(self.python), "-P", "-m", "prefect", "--no-prompt", *arguments)

    def vertex_launch(self, *arguments: str) -> tuple[str, ...]:
        return (str(self.python.with_name("vertex-launch")), *arguments)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The wheel, built and installed without anything of the checkout; the dependencies are those here."""
    home = tmp_path_factory.mktemp("wheel")
    run_quietly(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(home))
    [wheel] = home.glob("*.whl")
    venv.create(home / "venv", with_pip=False)
    python = home / "venv" / "bin" / "python"
    run_quietly(
        sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps",
        "--disable-pip-version-check", str(wheel),
    )  # fmt: skip
    # A directory that a .pth file names is searched, but its own .pth files are not read: the checkout is
    # installed by one.
    installed = sysconfig.get_path("purelib", vars={"base": str(home / "venv")})
    (Path(installed) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = home / "project"
    for name in OWN_PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('{name} is the user's own')\n")
    (folder / "wandb" / "run-20261130_120000-abcd").mkdir(parents=True)
    (folder / "wandb" / "debug.log").touch()
    return Project(wheel, python, folder)


def run_quietly(*command: str) -> None:
    subprocess.run(command, cwd=CHECKOUT, check=True, stdin=subprocess.DEVNULL)


@dataclass(frozen=True)
class Running:
    """A program that runs for as long as a test needs it, and what it has printed."""

    process: asyncio.subprocess.Process
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def assert_alive(self) -> None:
        assert self.process.returncode is None, self.output()


@asynccontextmanager
async def running(
    project: Project, environment: dict[str, str], log: Path, *command: str
) -> AsyncIterator[Running]:
    """Run a program in the folder until the body ends, with whatever it starts itself."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, cwd=project.folder, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield Running(process, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(project: Project, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PrefectServer]:
    """`prefect server start` as a user has it, in the environment of the wheel."""
    home = tmp_path_factory.mktemp("wheel-prefect")
    port = free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    environment = clean_environment(home, api_url)
    environment.pop("PYTHONPATH", None)
    settings = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": IN_MEMORY,
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }
    command = project.prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    async with running(project, environment | settings, home / "server.log", *command) as program:
        async with httpx.AsyncClient() as client:
            while True:
                with suppress(httpx.TransportError):
                    if (await client.get(f"{api_url}/health", timeout=5)).status_code == httpx.codes.OK:
                        break
                program.assert_alive()
                await asyncio.sleep(0.1)
        try:
            yield PrefectServer(api_url, environment, home)
        finally:
            await asyncio.to_thread(send_what_is_left)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def queue(server: PrefectServer) -> AsyncIterator[LaunchQueue]:
    """A queue of the sandbox, with its block."""
    async with Sandbox(queued_seconds=0, pending_seconds=0) as sandbox:
        launch_queue = LaunchQueue(sandbox)
        with prefect_client_of(server):
            await launch_queue.create()
            yield launch_queue


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployments(
    project: Project, server: PrefectServer, queue: LaunchQueue
) -> list[DeploymentResponse]:
    """Agent, launch and enqueue on a work pool of the queue's name, deployed by `vertex-launch deploy`."""
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=queue.name, type="process"))
    deploy = project.vertex_launch("deploy", "--queue", queue.name, "--pool", queue.name)
    output = await project.run(server.environment, *deploy)
    assert f"next: prefect worker start --pool {queue.name}" in output
    return await read_deployments(queue)


async def read_deployments(queue: LaunchQueue) -> list[DeploymentResponse]:
    async with get_client() as client:
        names = [f"{flow}/{queue.name}" for flow in ("agent", "launch", "enqueue")]
        return [await client.read_deployment_by_name(name) for name in names]


def what_is_deployed(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return what somebody has said of a deployment, without what the server knows besides."""
    told = {
        "id", "name", "description", "entrypoint", "path", "pull_steps", "parameters",
        "parameter_openapi_schema", "enforce_parameter_schema", "tags", "work_pool_name", "job_variables",
        "concurrency_limit",
    }  # fmt: skip
    schedules = [
        (each.schedule.model_dump(exclude={"anchor_date"}), each.active, each.slug)
        for each in deployment.schedules
    ]
    return {**deployment.model_dump(include=told), "schedules": schedules}


async def test_the_wheel_holds_one_package_with_all_its_files_and_nothing_else(project: Project) -> None:
    names = zipfile.ZipFile(project.wheel).namelist()
    package = await asyncio.to_thread((CHECKOUT / "prefect_vertex_launch").rglob, "*")
    expected = {
        str(path.relative_to(CHECKOUT))
        for path in package
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"prefect_vertex_launch/py.typed", "prefect_vertex_launch/cli/prefect.yaml"} <= expected


async def test_a_server_knows_the_block_types_without_anybody_who_registers_them(
    server: PrefectServer,
) -> None:
    async with httpx.AsyncClient(base_url=server.api_url, timeout=None) as client:
        for slug in ("vertex-launch-queue", "wandb-credentials"):
            found = await client.get(f"/block_types/slug/{slug}")
            assert found.status_code == httpx.codes.OK, found.text


async def test_the_blocks_can_be_registered_by_the_name_of_their_module(
    project: Project, server: PrefectServer
) -> None:
    output = await project.run(
        server.environment, *project.prefect("block", "register", "--module", "prefect_vertex_launch.blocks")
    )
    assert "Vertex Launch Queue" in output
    assert "Weights and Biases Credentials" in output


async def test_a_block_is_loaded_by_its_name_without_any_import_of_ours(
    project: Project, server: PrefectServer, queue: LaunchQueue
) -> None:
    program = (
        "import json, sys; from prefect.blocks.core import Block; block = Block.load(sys.argv[1]);"
        "module = sys.modules[type(block).__module__];"
        "print(json.dumps([module.__file__, block.queue, block.wandb_credentials.base_url]))"
    )
    output = await project.run(
        server.environment, str(project.python), "-c", program, f"vertex-launch-queue/{queue.name}"
    )
    file, *values = json.loads(output.splitlines()[0])
    assert Path(file).is_relative_to(project.python.parents[1])
    assert values == [queue.name, queue.sandbox.wandb_url]


async def end_of(flow_run: FlowRun, worker: Running) -> FlowRun:
    """Wait until a flow run has ended, as long as there is a worker for it."""
    async with get_client() as client:
        while True:
            now = await client.read_flow_run(flow_run.id)
            if now.state is not None and now.state.is_final():
                return now
            worker.assert_alive()
            await asyncio.sleep(0.2)


async def test_a_run_that_the_form_pushes_is_served_to_its_end_by_a_worker(
    project: Project,
    server: PrefectServer,
    queue: LaunchQueue,
    deployments: list[DeploymentResponse],
    tmp_path: Path,
) -> None:
    agent, _, enqueue = deployments
    # The worst place to be in: with the user's own packages first on sys.path.
    in_the_folder = {"working_dir": str(project.folder)}
    form = {"project": "runs", "image": "sandbox/train", "name": "by the form"}
    environment = server.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    command = project.prefect("worker", "start", "--pool", queue.name)
    async with (
        running(project, environment, tmp_path / "worker.log", *command) as worker,
        get_client() as client,
    ):
        await client.pause_deployment(agent.id)  # no other agent is started by its schedule
        pushing = await client.create_flow_run_from_deployment(
            enqueue.id, parameters={"queue": queue.name, "launch": form}, job_variables=in_the_folder
        )
        pushed = await end_of(pushing, worker)
        assert pushed.state_name == "Completed", worker.output()

        serving = await client.create_flow_run_from_deployment(
            agent.id, parameters={**agent.parameters, "drain": True}, job_variables=in_the_folder
        )
        served = await end_of(serving, worker)
        assert served.state_name == "Completed", worker.output()

    [(item_id, launch)] = (await queue.launches()).items()
    assert (launch.name, launch.state_name) == ("by the form", "Completed")
    run = queue.sandbox.wandb.run("runs", queue.item(item_id).associated_run_id)
    assert run is not None
    assert run.state == "finished"
    assert pushed.state is not None
    assert item_id in (pushed.state.message or "")


async def test_a_project_s_own_prefect_yaml_deploys_the_same_as_the_command(
    project: Project, server: PrefectServer, queue: LaunchQueue, deployments: list[DeploymentResponse]
) -> None:
    names = {"VERTEX_LAUNCH_QUEUE": queue.name, "VERTEX_LAUNCH_POOL": queue.name}
    await project.run(server.environment, *project.vertex_launch("init"))
    await project.run(server.environment | names, *project.prefect("deploy", "--all"))

    again = await read_deployments(queue)
    assert [what_is_deployed(each) for each in again] == [what_is_deployed(each) for each in deployments]
    assert [each.updated for each in again] != [each.updated for each in deployments]
