"""The job service of the sandbox over gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from prefect_vertex_launch.core.vertex_types import (
    CancelCustomJobRequest,
    CreateCustomJobRequest,
    DeleteCustomJobRequest,
    GetCustomJobRequest,
    ListCustomJobsRequest,
)
from prefect_vertex_launch.sandbox.vertex.backend import VertexBackend
from prefect_vertex_launch.sandbox.vertex.refusal import VertexRefusal, invalid_argument

_SERVICE: Final = "google.cloud.aiplatform.v1.JobService"


def add_job_service(server: grpc.aio.Server, backend: VertexBackend) -> None:
    """Let `server` answer the CustomJob calls of JobService from `backend`."""

    def cancel(request: Any) -> Message:
        backend.cancel(request.name)
        return Empty()

    def page(request: Any) -> Message:
        return backend.list(
            request.parent, request.filter, request.page_size, request.page_token, request.read_mask
        )

    handlers = {
        "CreateCustomJob": _handler(
            CreateCustomJobRequest, lambda request: backend.create(request.parent, request.custom_job)
        ),
        "GetCustomJob": _handler(GetCustomJobRequest, lambda request: backend.get(request.name)),
        "ListCustomJobs": _handler(ListCustomJobsRequest, page),
        "CancelCustomJob": _handler(CancelCustomJobRequest, cancel),
        "DeleteCustomJob": _handler(DeleteCustomJobRequest, lambda request: backend.delete(request.name)),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))


def _handler(request_type: Any, answer: Callable[[Any], Message]) -> grpc.RpcMethodHandler[Any, Message]:
    async def respond(request: Any, context: grpc.aio.ServicerContext[Any, Message]) -> Message:
        try:
            if request is None:
                raise invalid_argument("Request contains an invalid argument: it cannot be parsed.")
            return answer(request)
        except VertexRefusal as refusal:
            await context.abort(refusal.status, refusal.message)

    return grpc.unary_unary_rpc_method_handler(
        respond,  # pyright: ignore[reportArgumentType]  # the stubs know handlers of the threaded server only
        request_deserializer=lambda content: _parsed(request_type, content),
        response_serializer=lambda message: message.SerializeToString(),
    )


def _parsed(request_type: Any, content: bytes) -> Any:
    """Return a request, or None for what is none: left to gRPC, that would be an error of ours."""
    try:
        return request_type.pb().FromString(content)
    except DecodeError:
        return None
