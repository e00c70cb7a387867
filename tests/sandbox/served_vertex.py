"""Vertex AI's half of the sandbox, served over REST and gRPC, and short ways to write jobs for it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvicorn

from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.vertex.backend import VertexBackend
from prefect_vertex_launch.sandbox.vertex.grpc_service import add_job_service
from prefect_vertex_launch.sandbox.vertex.rest import vertex_app
from prefect_vertex_launch.vertex.client import JobServiceAsyncClient, JobServiceGrpcAsyncIOTransport
from tests.eventually import until

PARENT = "projects/p/locations/us-central1"
NUMBER = "1234"
IMAGES = {
    "python": [sys.executable],
    "sandbox/hello": [sys.executable, "-c", "import sys; print('hello', *sys.argv[1:])"],
}
HOLD = "import time; print('holding', flush=True); time.sleep(600)"
PACKAGE = {"executor_image_uri": "x", "package_uris": ["gs://b/p.tar.gz"], "python_module": "m"}


@dataclass
class Served:
    backend: VertexBackend
    rest_url: str
    client: JobServiceAsyncClient


@contextlib.asynccontextmanager
async def served(workdir: Path, records: Records | None = None, **options: Any) -> AsyncIterator[Served]:
    options = {"queued_seconds": 0.0, "pending_seconds": 0.0, "project_numbers": {"p": NUMBER}} | options
    records = records or Records()
    backend = VertexBackend(records, workdir=workdir, images=IMAGES, **options)
    await backend.start()
    grpc_server = grpc.aio.server()
    add_job_service(grpc_server, backend)
    grpc_port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    web = uvicorn.Server(uvicorn.Config(vertex_app(backend), port=0, log_level="warning"))
    serving = asyncio.create_task(web.serve())
    await until(lambda: web.started)
    rest_port = web.servers[0].sockets[0].getsockname()[1]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}")
    client = JobServiceAsyncClient(transport=JobServiceGrpcAsyncIOTransport(channel=channel))
    try:
        yield Served(backend, f"http://127.0.0.1:{rest_port}", client)
    finally:
        await channel.close()
        # Asked to end, it would take a fifth of a second, after each test.
        for server in web.servers:
            server.close()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        await grpc_server.stop(None)
        await backend.aclose()
        records.close()


async def terminal(vertex: Served, name: str) -> CustomJob:
    await until(lambda: vertex.backend.get(name).HasField("end_time"))
    return await vertex.client.get_custom_job(name=name)


def pool(*program: str, image: str = "python", replicas: int = 1, **container: Any) -> dict[str, Any]:
    return {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": replicas,
        "container_spec": {"image_uri": image, "command": list(program), **container},
    }


def python(code: str, **options: Any) -> dict[str, Any]:
    return pool(sys.executable, "-c", code, **options)


def job(
    *pools: dict[str, Any], name: str = "job", labels: dict[str, str] | None = None, **spec: Any
) -> CustomJob:
    return CustomJob(
        display_name=name,
        labels=labels or {},
        job_spec={"worker_pool_specs": pools or (python("pass"),), **spec},
    )


async def create(vertex: Served, custom_job: CustomJob) -> CustomJob:
    return await vertex.client.create_custom_job(parent=PARENT, custom_job=custom_job)


async def outcome(vertex: Served, custom_job: CustomJob) -> CustomJob:
    return await terminal(vertex, (await create(vertex, custom_job)).name)


def pool_with(**fields: Any) -> CustomJob:
    return job(python("pass") | fields)


def processes_below(directory: Path) -> list[str]:
    """The programs whose command lines or working directories lie in `directory`."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            if str(directory) in command or (process / "cwd").readlink().is_relative_to(directory):
                found.append(command)
    return found


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False
