"""The queue client under test: against the W&B sandbox, and against answers that a test writes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import httpx
from pydantic import SecretStr

from prefect_vertex_launch.wandb.queue import WandbEndpoint, WandbQueue
from tests.sandbox.real_wandb import API_KEY, MovableClock

CONFIG = {"resource_args": {"gcp-vertex": {"spec": {"staging_bucket": "gs://b"}, "run": {}}}}


class NoWait(MovableClock):
    """A clock on which sleeping moves the time and returns at once."""

    def monotonic(self) -> float:
        return self.ahead.total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def open_queue(
    base_url: str, *, name: str = "vertex", key: str = API_KEY, entity: str = "team", **more
) -> WandbQueue:
    endpoint = WandbEndpoint(base_url, SecretStr(key))
    return WandbQueue(endpoint, entity=entity, queue=name, clock=NoWait(), random=Random(1), **more)


def mocked(answer: Callable[[httpx.Request], httpx.Response]) -> WandbQueue:
    return open_queue("https://wandb.test", transport=httpx.MockTransport(answer))


def answering(data: object, status: int = 200, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _request: httpx.Response(status, json=data, headers=headers)


def errors(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"errors": [{"message": message}]})
