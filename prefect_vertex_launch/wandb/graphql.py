"""HTTP as W&B's server speaks it, GraphQL above all: a request, its answer or the error it stands for."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from random import Random
from typing import Any, cast

import httpx

from prefect_vertex_launch.core.clock import Clock
from prefect_vertex_launch.core.errors import (
    AuthenticationFailed,
    Conflict,
    NotFound,
    Permanent,
    PermissionDenied,
    Problem,
    Refused,
    Transient,
)
from prefect_vertex_launch.core.retry import retrying
from prefect_vertex_launch.wandb.endpoint import WandbEndpoint, authorize_url

MAX_ANSWER_BYTES = 32 * 1024 * 1024
_MAX_QUOTED_CHARACTERS = 500
# Nobody means more by Retry-After, and no clock can add up any number that may stand there.
_LONGEST_PAUSE_SECONDS = 86_400.0
# The timeout is for each part of an answer; all of it, drop by drop, may take so many times as long.
_TIMEOUTS_AT_MOST = 4
_DENIED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_NO_ANSWER = (httpx.TransportError, httpx.DecodingError, httpx.InvalidURL, UnicodeError, TimeoutError)
_STATUS_OF_MESSAGE = tuple(
    (re.compile(text, re.IGNORECASE), status)
    for text, status in (
        (r"rate limit|too many requests", HTTPStatus.TOO_MANY_REQUESTS),
        (r"internal (?:server )?error|timed? ?out|deadline exceeded|unavailable", HTTPStatus.BAD_GATEWAY),
        (r"already claimed|not eligible to be claimed", HTTPStatus.CONFLICT),
        (r"permission denied|not authori[sz]ed|forbidden", HTTPStatus.FORBIDDEN),
        (r"not found|does not exist", HTTPStatus.NOT_FOUND),
    )
)


# No phrase above is shorter.
_SHORTEST_PHRASE = 7
# What stands in quotes is somebody's name; an apostrophe inside of a word is none.
_QUOTED = re.compile(r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|`[^`]*`""")


@dataclass(frozen=True, slots=True)
class Operation:
    """A GraphQL document and what the answer's errors are to be about.

    `is_idempotent` allows sending it again after a failure.
    """

    name: str
    document: str
    is_idempotent: bool = True


class WandbGraphql:
    """Sends operations to one W&B server; counts them in `calls` by name, repetitions included."""

    def __init__(
        self,
        endpoint: WandbEndpoint,
        *,
        timeout_seconds: float,
        clock: Clock,
        random: Random,
        transport: httpx.AsyncBaseTransport | None = None,
        on_denied: Callable[[], None] | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self._endpoint = endpoint
        self._on_denied = on_denied
        self._clock = clock
        self._random = random
        self._whole_seconds = _TIMEOUTS_AT_MOST * timeout_seconds
        self._http = httpx.AsyncClient(
            base_url=endpoint.base_url,
            timeout=httpx.Timeout(timeout_seconds),
            limits=httpx.Limits(max_connections=20, max_keepalive_connections=10),
            transport=transport,
            # The key goes to the server that the endpoint names, never to where netrc or a proxy point.
            auth=_auth(endpoint),
            headers={"User-Agent": "prefect-vertex-launch"},
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def use(self, endpoint: WandbEndpoint) -> None:
        """Send what is sent from now on with another key for the same server."""
        self._endpoint, self._http.auth = endpoint, _auth(endpoint)

    async def execute(self, operation: Operation, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer's `data`.

        Raises AuthenticationFailed, PermissionDenied, NotFound, Conflict or Refused by what the server
        says, and Transient after the last try.
        """

        async def once() -> dict[str, Any]:
            text = await self.send(operation, variables)
            try:
                answer = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise Transient(f"W&B's answer to {operation.name} is not readable JSON") from error
            return self.data_of(operation, answer, variables)

        if not operation.is_idempotent:
            return await once()
        return await retrying(once, clock=self._clock, random=self._random)

    async def send(self, operation: Operation, variables: Mapping[str, Any]) -> str:
        """Send an operation once and return the answer's text as it is, which may be no JSON at all."""
        body = {"query": operation.document, "variables": variables, "operationName": operation.name}
        self.calls[operation.name] += 1
        return await self._read("POST", "/graphql", operation.name, **_json(body))

    async def succeed(self, operation: Operation, variables: Mapping[str, Any], *, where: str) -> None:
        """Carry out a mutation.

        Raises Refused about `where` when the answer says that it was not done, and as `execute` does.
        """
        if not await self.is_done(operation, variables):
            raise Refused(Problem(where, f"W&B did not carry out {operation.name}"))

    async def is_done(self, operation: Operation, variables: Mapping[str, Any]) -> bool:
        """Ask for a mutation as `succeed` does; return whether the answer says that it was carried out."""
        answer = at(await self.execute(operation, variables), operation.name)
        return answer is not None and bool(answer.get("success"))

    async def post(self, path: str, body: Mapping[str, Any], *, name: str) -> None:
        """Send JSON that may be sent again to a path of the server beside GraphQL; `name` is for `calls`."""
        await self._repeat("POST", httpx.URL(path), name, **_json(body))

    async def download(self, url: str, *, max_bytes: int) -> str:
        """Return the text of a file of the server's, by its address or path.

        The key is sent only to the server itself: a signed address of a bucket needs none.
        """
        return await self._repeat("GET", _address(url), "download", max_bytes=max_bytes)

    async def upload(self, url: str, content: bytes, *, headers: Mapping[str, str]) -> None:
        """Put a file where the server said, by its address or path; the key stays home as in `download`."""
        await self._repeat("PUT", _address(url), "upload", content=content, headers=dict(headers))

    async def _repeat(self, method: str, url: httpx.URL, name: str, **options: Any) -> str:
        own = httpx.URL(self._endpoint.base_url)
        target = own.join(url)
        is_own = (target.scheme, target.host, target.port) == (own.scheme, own.host, own.port)

        async def once() -> str:
            self.calls[name] += 1
            if is_own:
                return await self._read(method, target, name, **options)
            return await self._read(method, target, name, store=target.host, auth=None, **options)

        return await retrying(once, clock=self._clock, random=self._random)

    def data_of(self, operation: Operation, answer: object, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `data` of an answer, or raise what its `errors` say; `variables` are what was sent."""
        if not isinstance(answer, dict):
            raise Transient(f"W&B's answer to {operation.name} is not a JSON object")
        fields = cast("dict[str, Any]", answer)
        if fields.get("errors"):
            message = _messages(fields["errors"])
            status = _status_of(message, variables)
            raise self._error(status, operation.name, message[:_MAX_QUOTED_CHARACTERS])
        data: Any = fields.get("data")
        if not isinstance(data, dict):
            raise Transient(f"W&B's answer to {operation.name} has no data")
        return cast("dict[str, Any]", data)

    async def _read(
        self,
        method: str,
        url: httpx.URL | str,
        name: str,
        *,
        max_bytes: int = MAX_ANSWER_BYTES,
        store: str | None = None,
        **options: Any,
    ) -> str:
        server = store or f"W&B at {self._endpoint.base_url}"
        try:
            async with (
                asyncio.timeout(self._whole_seconds),
                self._http.stream(method, url, **options) as response,
            ):
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > max_bytes:
                        break
        except _NO_ANSWER as error:
            reason = type(error).__name__
            raise Transient(f"{server} did not answer {name}: {reason}") from error
        text = body.decode("utf-8", errors="replace")
        if response.is_success:
            return text
        # A bucket quotes the signature that it was asked with.
        message = "" if store else _messages_in(text)
        raise self._error(
            response.status_code,
            name,
            message,
            retry_after_seconds=self._retry_after(response),
            store=store,
        )

    def _error(
        self,
        status: int,
        name: str,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        store: str | None = None,
    ) -> Permanent | Transient:
        base_url, key = self._endpoint.base_url, self._endpoint.api_key.get_secret_value()
        message = message.replace(key, "…") if key else message
        server = store or f"W&B at {base_url}"
        if store is None and self._on_denied is not None and status in _DENIED:
            self._on_denied()
        said = f"{server} refused {name} ({int(status)})" + (f": {message}" if message else "")
        if status == HTTPStatus.UNAUTHORIZED and store is None:
            return AuthenticationFailed(
                Problem(
                    "W&B API key",
                    f"{base_url} does not accept it",
                    why="a key belongs to one W&B server",
                    fix=f"Put the key from {authorize_url(base_url)} into the block WandbCredentials, "
                    "with this server's base_url.",
                )
            )
        if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT} or status >= 500:
            return Transient(said, retry_after_seconds=retry_after_seconds)
        kind = {403: PermissionDenied, 404: NotFound, 409: Conflict}.get(status, Refused)
        return kind(Problem(name, said))

    def _retry_after(self, response: httpx.Response) -> float | None:
        value = response.headers.get("Retry-After", "").strip()
        if value.isdecimal():
            return min(float(value), _LONGEST_PAUSE_SECONDS)
        try:
            # Held against the server's own clock: ours may be hours off.
            now = _moment(response.headers["Date"]) if "Date" in response.headers else self._clock.now()
            seconds = (_moment(value) - now).total_seconds()
        except (ValueError, OverflowError):
            return None
        return min(max(0.0, seconds), _LONGEST_PAUSE_SECONDS)


def _moment(text: str) -> datetime:
    """Return the moment of an HTTP date. Raises ValueError for what is none."""
    moment = parsedate_to_datetime(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _auth(endpoint: WandbEndpoint) -> httpx.BasicAuth:
    return httpx.BasicAuth("api", endpoint.api_key.get_secret_value())


def _json(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body as JSON that can be sent whatever its texts hold, half a character even."""
    return {"content": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}


def _address(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise Transient("W&B answered with an address that is none") from error


def _messages_in(text: str) -> str:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()[:_MAX_QUOTED_CHARACTERS]
    if isinstance(answer, dict) and "errors" in answer:
        return _messages(cast("dict[str, Any]", answer)["errors"])[:_MAX_QUOTED_CHARACTERS]
    return text.strip()[:_MAX_QUOTED_CHARACTERS]


def _status_of(message: str, variables: Mapping[str, Any]) -> int:
    """Return the HTTP status that a GraphQL error stands for: its own is 200 on some servers.

    The server may quote what it was sent. A run that is called "rate limit" must not decide.
    """
    said = message
    for text in sorted({*_texts_in(variables)}, key=len, reverse=True):
        said = said.replace(text, "…")
    said = _QUOTED.sub("…", said)
    for pattern, status in _STATUS_OF_MESSAGE:
        if pattern.search(said):
            return status
    return HTTPStatus.BAD_REQUEST


def _texts_in(value: object) -> Iterator[str]:
    """Yield the texts of what was sent that are long enough to say something."""
    if isinstance(value, str) and len(value) >= _SHORTEST_PHRASE:
        yield value
    members: object = ()
    if isinstance(value, Mapping):
        members = cast("Mapping[str, object]", value).values()
    elif isinstance(value, list | tuple):
        members = cast("Sequence[object]", value)
    for member in cast("Iterable[object]", members):
        yield from _texts_in(member)


def _messages(errors: Any) -> str:
    entries = cast("list[Any]", errors) if isinstance(errors, list) else [errors]
    texts = [
        str(cast("dict[str, Any]", entry).get("message", "")) if isinstance(entry, dict) else str(entry)
        for entry in entries
    ]
    return "; ".join(text for text in texts if text)


def at(data: Mapping[str, Any], *path: str) -> dict[str, Any] | None:
    """Return the object at a path of an answer, or None where something on the way is null."""
    value: Any = data
    for field in path:
        value = cast("dict[str, Any]", value).get(field) if isinstance(value, dict) else None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def objects_at(data: Mapping[str, Any] | None, field: str) -> list[dict[str, Any]]:
    """Return the objects of a list in an answer; none where the list is null.

    Raises Transient for anything else: it is not what was asked for.
    """
    values: Any = (data or {}).get(field)
    entries = cast("list[Any]", values) if isinstance(values, list) else []
    if (values is not None and not isinstance(values, list)) or not all(
        isinstance(entry, dict) for entry in entries
    ):
        raise Transient(f"W&B's answer holds no list of objects as {field}")
    return cast("list[dict[str, Any]]", entries)


def text_at(data: Mapping[str, Any], field: str) -> str | None:
    """Return the text of an answer's field; None where it is empty or something else."""
    value = data.get(field)
    return value if isinstance(value, str) and value else None
