"""A JobService on a local gRPC port that answers as a test tells it to, for what the sandbox never does."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from prefect_vertex_launch.core.vertex_types import (
    CancelCustomJobRequest,
    CreateCustomJobRequest,
    CustomJob,
    GetCustomJobRequest,
    ListCustomJobsRequest,
    ListCustomJobsResponse,
)

SERVICE = "google.cloud.aiplatform.v1.JobService"
REQUESTS = {
    "CreateCustomJob": CreateCustomJobRequest,
    "GetCustomJob": GetCustomJobRequest,
    "ListCustomJobs": ListCustomJobsRequest,
    "CancelCustomJob": CancelCustomJobRequest,
}
PARENT = "projects/p/locations/us-central1"


class ScriptedVertex:
    """`jobs` are by resource name; a function in `faults` is awaited before its method answers.

    A GET of a job in `unreadable` is never answered. Unlike Vertex AI it ignores filters, and read masks
    too, which a client has to bear.
    """

    def __init__(self) -> None:
        self.url = ""
        self.jobs: dict[str, CustomJob] = {}
        self.calls: Counter[str] = Counter()
        self.faults: dict[str, Callable[[grpc.aio.ServicerContext], Awaitable[None]]] = {}
        self.listed: Callable[[CustomJob], bool] = lambda job: not job.end_time
        self.unreadable: set[str] = set()
        self.connections: set[str] = set()
        self.seconds_left: dict[str, float | None] = {}
        self.authorizations: set[str] = set()
        self.requests: list[Any] = []

    def add(self, number: int, state: int, **fields: Any) -> str:
        name = f"{PARENT}/customJobs/{number}"
        self.jobs[name] = CustomJob(name=name, state=state, **fields)
        return name

    async def create_custom_job(self, request: CreateCustomJobRequest) -> CustomJob:
        return self.jobs[self.add(len(self.jobs) + 1, 1, display_name=request.custom_job.display_name)]

    async def get_custom_job(self, request: GetCustomJobRequest) -> CustomJob | None:
        if request.name in self.unreadable:
            await asyncio.Event().wait()
        return self.jobs.get(request.name)

    async def list_custom_jobs(self, request: ListCustomJobsRequest) -> ListCustomJobsResponse:
        jobs = [job for job in self.jobs.values() if self.listed(job)]
        start = int(request.page_token or 0)
        end = start + min(request.page_size or 100, 100)
        token = str(end) if end < len(jobs) else ""
        return ListCustomJobsResponse(custom_jobs=jobs[start:end], next_page_token=token)

    async def cancel_custom_job(self, request: CancelCustomJobRequest) -> Empty | None:
        return Empty() if request.name in self.jobs else None

    def handler(self, method: str) -> grpc.RpcMethodHandler:
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in method).lstrip("_")

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            self.calls[method] += 1
            self.connections.add(context.peer())
            self.seconds_left[method] = context.time_remaining()
            metadata = dict(context.invocation_metadata() or ())
            self.authorizations.add(str(metadata.get("authorization", "none")))
            self.requests.append(request)
            if method in self.faults:
                await self.faults[method](context)
            found = await getattr(self, name)(request)
            if found is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "The CustomJob does not exist.")
            return found

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=REQUESTS[method].deserialize,
            response_serializer=lambda found: (
                found.SerializeToString() if isinstance(found, Empty) else type(found).serialize(found)
            ),
        )


def failing(code: grpc.StatusCode, message: str, times: int = 10**6) -> Callable[[Any], Awaitable[None]]:
    """Return a fault that answers with a status, the first `times` times."""
    left = [times]

    async def fail(context: grpc.aio.ServicerContext) -> None:
        if left[0] > 0:
            left[0] -= 1
            await context.abort(code, message)

    return fail


async def hang(_context: grpc.aio.ServicerContext) -> None:
    """A fault that never answers."""
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def scripted_vertex(tls: grpc.ServerCredentials | None = None) -> AsyncIterator[ScriptedVertex]:
    """Serve a JobService, over TLS if it is given a key and certificate."""
    vertex = ScriptedVertex()
    server = grpc.aio.server()
    handlers = {method: vertex.handler(method) for method in REQUESTS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if tls is None:
        vertex.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        vertex.url = f"https://127.0.0.1:{server.add_secure_port('127.0.0.1:0', tls)}"
    await server.start()
    try:
        yield vertex
    finally:
        await server.stop(grace=0)
