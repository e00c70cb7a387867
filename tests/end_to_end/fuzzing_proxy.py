"""A way to W&B and Vertex AI on which answers are changed: JSON and messages with something wrong in them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
import grpc.aio
import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.sandbox.web_server import WebServer
from tests.eventually import HANG_SECONDS
from tests.json_fuzz import places

VALUES: list[Any] = [
    None, True, False, 0, -1, 1 << 63, 1 << 2000, 0.5, 1e308, float("nan"), "", "x" * 5000, "a\0b", "\ud800",
    "\N{GRINNING FACE}", "{}", [], {}, [[[]]], {"id": None}, [None],
]  # fmt: skip
BODIES = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"data": null}', b'{"errors": [null]}', b"<html>", b"5"]


@dataclass
class Fuzz:
    """Changes answers with a `probability`; `changed` counts them.

    `seen` are the operations whose answers were changed. What an agent is told to do by a
    well-formed answer is no garbage: W&B's word to stop polling stays.
    """

    random: Random
    probability: float = 0.0
    changed: int = 0
    seen: set[str] = field(default_factory=set[str])

    def body(self, operation: str, content: bytes) -> bytes:
        """Return the body of an answer in JSON, or another one."""
        if not self._hits(operation):
            return content
        if self.random.random() < 0.3:
            return self.random.choice(BODIES)
        value = [json.loads(content)]
        container, key = self.random.choice(places(value))
        if key == "stopPolling":
            return content
        if self.random.random() < 0.3 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = self.random.choice(VALUES)
        return json.dumps(value[0]).encode()

    def message(self, operation: str, content: bytes) -> bytes:
        """Return the bytes of an answer in protobuf, or others."""
        if not self._hits(operation):
            return content
        changed = bytearray(content)
        for _ in range(self.random.randrange(1, 4)):
            if changed:
                changed[self.random.randrange(len(changed))] = self.random.randrange(256)
        length = self.random.randrange(len(changed) + 1) if self.random.random() < 0.3 else len(changed)
        return bytes(changed[:length])

    def _hits(self, operation: str) -> bool:
        if self.random.random() >= self.probability:
            return False
        self.changed += 1
        self.seen.add(operation)
        return True


@dataclass(frozen=True)
class Proxy:
    """Where the changed answers come from."""

    wandb_url: str
    vertex_grpc_url: str


@contextlib.asynccontextmanager
async def fuzzing_proxy(sandbox: Sandbox, fuzz: Fuzz) -> AsyncIterator[Proxy]:
    """Stand before both servers of a sandbox."""
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=sandbox.wandb_url, timeout=HANG_SECONDS)
        )
        web = WebServer(_wandb(client, fuzz), 0)
        await web.start()
        stack.push_async_callback(web.aclose)
        address = sandbox.vertex_grpc_url.removeprefix("grpc://")
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Vertex(channel, fuzz),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        yield Proxy(web.url, f"grpc://127.0.0.1:{port}")


def _wandb(client: httpx.AsyncClient, fuzz: Fuzz) -> Starlette:
    async def forward(request: Request) -> Response:
        content = await request.body()
        headers = {
            name: value
            for name, value in request.headers.items()
            if name in {"authorization", "content-type", "user-agent"}
        }
        answer = await client.request(request.method, str(request.url.path), content=content, headers=headers)
        body = answer.content
        if request.url.path == "/graphql" and answer.status_code == httpx.codes.OK:
            body = fuzz.body(json.loads(content).get("operationName") or "", body)
        return Response(body, answer.status_code, media_type=answer.headers.get("content-type"))

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST", "PUT"])])


class _Vertex(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel, fuzz: Fuzz) -> None:
        self._channel = channel
        self._fuzz = fuzz

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        path: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue] - no stub

        async def forward(request: bytes, context: Any) -> bytes:
            try:
                metadata = [
                    ("authorization", value)
                    for name, value in context.invocation_metadata()
                    if name == "authorization"
                ]
                answer = await self._channel.unary_unary(path)(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
                raise AssertionError("aborted") from error
            return self._fuzz.message(path.rpartition("/")[2], answer)

        return grpc.unary_unary_rpc_method_handler(forward)
