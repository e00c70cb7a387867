"""The sandbox and a Prefect server as processes that can be killed and come back at the same address."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from prefect_vertex_launch.cli.demo.servers import free_port
from tests.chaos.auditor import Job, read_job
from tests.chaos.nursery import ROOT
from tests.end_to_end.shared_prefect import IN_MEMORY, SETTINGS, clean_environment

START_SECONDS = 90.0
STOP_SECONDS = 15.0
LOOK_SECONDS = 0.1
ENTITY = "chaos"
PARENT = "projects/test-project/locations/us-central1"
# Jobs that need no wandb: `python -S` starts in a fortieth of a second.
IMAGES = {
    "chaos/run": f"{sys.executable} -S -E {Path(__file__).with_name('quick_run.py')}",
    "chaos/shell": "/bin/sh -c",
}


class Program(ABC):
    """A program that can be killed at any time and started again."""

    def __init__(self, arguments: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._log = log
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=dict(self._environment),
                start_new_session=True,
            )
        await self._until_ready()

    async def kill(self) -> None:
        """`kill -9`, of this process alone: what it started lives on."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """End it as an operator would."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(number)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _until_ready(self) -> None:
        assert self._process is not None
        async with asyncio.timeout(START_SECONDS):
            while not await self._is_ready():
                if self._process.returncode is not None:
                    raise RuntimeError(f"{self._arguments} ended:\n{self._log.read_text()[-2000:]}")
                await asyncio.sleep(LOOK_SECONDS)

    @abstractmethod
    async def _is_ready(self) -> bool:
        """Whether it answers."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class PrefectProcess(Program):
    """A Prefect server of its own: in memory, or on a database file that outlives it.

    One that `is_faulty` can be told to let a share of its clients' calls go wrong.
    """

    def __init__(self, home: Path, *, on_file: bool, is_faulty: bool = False) -> None:
        port = free_port()
        self.home = home
        self.api_url = f"http://127.0.0.1:{port}/api"
        database = f"sqlite+aiosqlite:///{home / 'prefect.db'}" if on_file else IN_MEMORY
        self.environment = clean_environment(home, self.api_url)
        module = "tests.chaos.faulty_prefect" if is_faulty else "prefect.server.api.server"
        application = ["--factory", f"{module}:create_app", "--log-level", "error"]
        super().__init__(
            ["uvicorn", *application, "--host", "127.0.0.1", "--port", str(port)],
            home / "prefect.log",
            self.environment | SETTINGS | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database},
        )

    async def _is_ready(self) -> bool:
        return await _answers(f"{self.api_url}/health")

    async def let_go_wrong(self, share: float, seed: int) -> None:
        """Let this share of all calls go wrong from now on."""
        async with httpx.AsyncClient() as client:
            answer = await client.put(self._switch_url, json={"share": share, "seed": seed})
        answer.raise_for_status()

    async def went_wrong(self) -> tuple[int, int]:
        """Return how many calls could have gone wrong, and how many did."""
        async with httpx.AsyncClient() as client:
            counts = (await client.get(self._switch_url)).json()
        return counts["calls"], sum(counts["hits"].values())

    @property
    def _switch_url(self) -> str:
        return f"{self.api_url.removesuffix('/api')}/going-wrong"


class SandboxProcess(Program):
    """`vertex-launch sandbox up` on ports that stay the same, with its state in a file.

    Its attributes are those of `Sandbox` that a queue's blocks are made of.
    """

    def __init__(self, directory: Path, *, lease_seconds: float, job_seconds: float = 0.0) -> None:
        wandb, rest, grpc, google, faults = (free_port() for _ in range(5))
        self.entity = ENTITY
        self.api_key = f"chaos_{secrets.token_hex(20)}"
        self.wandb_url = f"http://127.0.0.1:{wandb}"
        self.vertex_rest_url = f"http://127.0.0.1:{rest}"
        self.vertex_grpc_url = f"grpc://127.0.0.1:{grpc}"
        self.faults_url = f"http://127.0.0.1:{faults}"
        self.state = directory / "sandbox.state"
        self.request_log = directory / "requests.jsonl"
        ports = {"wandb": wandb, "vertex-rest": rest, "vertex-grpc": grpc, "google": google, "faults": faults}
        images = [f"--image={name}={command}" for name, command in IMAGES.items()]
        super().__init__(
            [
                *("prefect_vertex_launch.cli.main", "sandbox", "up", "--entity", ENTITY),
                *(word for name, port in ports.items() for word in (f"--{name}-port", str(port))),
                *("--state", str(self.state), "--request-log", str(self.request_log)),
                *("--lease-seconds", str(lease_seconds), "--queued-seconds", str(job_seconds)),
                *("--pending-seconds", "0", *images),
            ],
            directory / "sandbox.log",
            {**os.environ, "SANDBOX_API_KEY": self.api_key},
        )
        self._http = httpx.AsyncClient(timeout=30, auth=("api", self.api_key))
        self._ready: dict[str, Any] = {}

    def service_account_info(self, _project: str) -> dict[str, str]:
        """Return the service account key with which Google's clients get in here."""
        return json.loads(Path(self._ready["google_credentials"]).read_text())

    async def ask(self, query: str, **variables: Any) -> Any:
        """Ask W&B, and return its data."""
        response = await self._http.post(
            f"{self.wandb_url}/graphql",
            json={"query": query, "variables": variables},
        )
        response.raise_for_status()
        return response.json()["data"]

    async def jobs(self) -> list[Job]:
        """Return every job, as Vertex AI's REST API shows it."""
        found: list[Job] = []
        parameters: dict[str, str | int] = {"pageSize": 100}
        while True:
            request = self._http.build_request(
                "GET",
                f"{self.vertex_rest_url}/v1/{PARENT}/customJobs",
                params=parameters,
                headers={"Authorization": f"Bearer {self._ready['access_token']}"},
            )
            response = await self._http.send(request, auth=None)
            response.raise_for_status()
            page = response.json()
            found += [read_job(job) for job in page.get("customJobs", ())]
            if not (token := page.get("nextPageToken")):
                return found
            parameters["pageToken"] = token

    async def switch_on(self, **fault: Any) -> None:
        """Switch a fault on, until the sandbox ends."""
        response = await self._http.post(f"{self.faults_url}/faults", json=fault)
        assert response.is_success, response.text

    async def switch_off(self) -> list[dict[str, Any]]:
        """Switch every fault off; return what they did."""
        faults = (await self._http.get(f"{self.faults_url}/faults")).json()
        (await self._http.delete(f"{self.faults_url}/faults")).raise_for_status()
        return faults

    async def _is_ready(self) -> bool:
        # The log has the lines of those before it, too.
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        said = [json.loads(line) for line in lines if line.startswith('{"wandb_url"')]
        self._ready = next((line for line in said if line["pid"] == self.pid), {})
        return bool(self._ready)


async def _answers(url: str) -> bool:
    async with httpx.AsyncClient(timeout=2) as client:
        with contextlib.suppress(httpx.TransportError):
            return (await client.get(url)).status_code < 500
    return False


def last_lines(log: Path, count: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:]) if log.exists() else ""
