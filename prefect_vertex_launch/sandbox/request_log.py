"""What the servers of the sandbox were asked and what they answered, as lines of JSON in a file."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from prefect_vertex_launch.sandbox.json_text import read_json
from prefect_vertex_launch.sandbox.private_files import PRIVATE_FILE, require_own_directory
from prefect_vertex_launch.sandbox.start_refusal import StartRefusal
from prefect_vertex_launch.sandbox.wrapped_calls import Answer, WrappedCalls

MAX_BODY_BYTES = 64 * 1024
_REDACTED: Final = "REDACTED"
_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")


class RequestLog:
    """The file, to which every request adds a line.

    A line has `time`, `server`, `method`, `operation`, `path`, `headers`, `request`, `status` and
    `response`. The Authorization header reads REDACTED; everything else is there as it came, secrets in
    bodies included, so that a search finds them: only the owner of the file may read it. Of a body the
    first 64 KiB are kept, as JSON where it is JSON.

    Raises StartRefusal if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        require_own_directory(path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE_FILE)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):  # not a terminal, say
                os.fchmod(descriptor, PRIVATE_FILE)
        except OSError as error:
            raise StartRefusal(
                f"the request log {path} cannot be written: {error.strerror}",
                f"make its directory with `mkdir -p {shlex.quote(str(path.parent))}`, or name another file",
            ) from error
        self._file = os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(
        self,
        server: str,
        *,
        method: str,
        operation: str | None,
        path: str,
        headers: Iterable[tuple[str, str]],
        request: bytes,
        status: int | str,
        response: bytes,
    ) -> None:
        """Add the line of one request."""
        line = {
            "time": datetime.now(UTC).isoformat(),
            "server": server,
            "method": method,
            "operation": operation,
            "path": path,
            "headers": {
                name.lower(): _REDACTED if name.lower() == "authorization" else value
                for name, value in headers
            },
            "request": _body(request),
            "status": status,
            "response": _body(response),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def logged_app(app: ASGIApp, server: str, log: RequestLog) -> ASGIApp:
    """Return an ASGI app that answers as `app` does and logs every request."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        try:
            await app(scope, exchange.receive_and_keep, exchange.keep_and_send)
        except ClientDisconnect:
            raise
        except BaseException:
            exchange.status = 500
            raise
        finally:
            query = scope["query_string"].decode("latin-1")
            request = bytes(exchange.request)
            log.write(
                server,
                method=scope["method"],
                operation=_operation(request) if scope["path"] == "/graphql" else None,
                path=scope["path"] + (f"?{query}" if query else ""),
                headers=[
                    (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
                ],
                request=request,
                status=exchange.status,
                response=bytes(exchange.response),
            )

    return answer


@dataclass(slots=True)
class _Exchange:
    """A request and its answer; what is answered once the client has left is no answer."""

    receive: Receive
    send: Send
    request: bytearray = field(default_factory=bytearray)
    response: bytearray = field(default_factory=bytearray)
    status: int | str = "no answer"
    has_left: bool = False

    async def receive_and_keep(self) -> AsgiMessage:
        message = await self.receive()
        self.has_left = message["type"] == "http.disconnect"
        self.request.extend(message.get("body", b""))
        return message

    async def keep_and_send(self, message: AsgiMessage) -> None:
        if not self.has_left:
            self.status = message.get("status", self.status)
            self.response.extend(message.get("body", b""))
        await self.send(message)


class LoggedCalls(WrappedCalls):
    """Logs the calls that a gRPC server answers."""

    def __init__(self, server: str, log: RequestLog) -> None:
        self._server = server
        self._log = log

    async def respond(self, path: str, request: Any, context: Any, answer: Answer) -> Any:
        """Answer one call as the server does, and write a line for what it is asked and answers."""
        response: Any = None
        try:
            response = await answer(context)
        finally:
            self._write(path, request, response, context)
        return response

    def _write(self, path: str, request: Any, response: Any, context: Any) -> None:
        code = context.code()
        status = (
            code.name if isinstance(code, grpc.StatusCode) else "OK" if response is not None else "UNKNOWN"
        )
        details = context.details() or b""
        self._log.write(
            self._server,
            method="gRPC",
            operation=path.rpartition("/")[2],
            path=path,
            headers=[(name, str(value)) for name, value in context.invocation_metadata() or ()],
            request=_json_of(request) if isinstance(request, Message) else b"",
            status=status,
            response=_json_of(response) if isinstance(response, Message) else _bytes(details),
        )


def _json_of(message: Message) -> bytes:
    try:
        return json_format.MessageToJson(message, indent=None).encode()
    except json_format.SerializeToJsonError:  # a time or a duration out of range
        return str(message).encode()


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _body(content: bytes) -> object:
    if not content:
        return None
    if len(content) <= MAX_BODY_BYTES:
        try:
            return read_json(content)
        except ValueError:
            pass
    return content[:MAX_BODY_BYTES].decode("utf-8", errors="backslashreplace")


def _operation(body: bytes) -> str | None:
    try:
        request = read_json(body)
    except ValueError:
        return None
    if not isinstance(request, dict):
        return None
    fields = cast("Mapping[str, Any]", request)
    found = _OPERATION.search(str(fields.get("query")))
    return fields.get("operationName") or (found[1] if found else None)
