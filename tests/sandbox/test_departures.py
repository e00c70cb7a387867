"""Clients that leave while they ask: nothing is carried out, nothing is wrong, and the log says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_vertex_launch.sandbox.faults.registry import Fault, What
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.eventually import until
from tests.sandbox.served_vertex import PARENT
from tests.sandbox_access import KnownEverywhere


@dataclass
class Logged:
    sandbox: Sandbox
    path: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    async def leave_in_the_middle(self, method: str, url: str) -> dict[str, Any]:
        """Send seven bytes of a thousand, leave, and return the line that the log has of it."""
        known = len(self.lines())
        target = httpx.URL(url)
        _reader, writer = await asyncio.open_connection(target.host, target.port)
        known_as = next(KnownEverywhere(self.sandbox).auth_flow(httpx.Request(method, url))).headers
        head = f"{method} {target.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        head += f"Authorization: {known_as['authorization']}\r\n\r\n"
        writer.write(head.encode() + b"partial")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await until(lambda: len(self.lines()) > known)
        return self.lines()[known]


@asynccontextmanager
async def logged(directory: Path) -> AsyncIterator[Logged]:
    path = directory / "requests.jsonl"
    async with Sandbox(request_log=path, is_manual=True, faults_port=0) as sandbox:
        yield Logged(sandbox, path)


@pytest.mark.parametrize("is_faulty", [False, True])
async def test_a_client_that_leaves_in_mid_body_has_sent_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_faulty: bool
):
    async with logged(tmp_path) as scene:
        sandbox = scene.sandbox
        for server in ("wandb", "vertex") if is_faulty else ():
            await sandbox.faults.add(Fault(server=server, what=What.CUT_AFTER))
        for method, url in (
            ("PUT", f"{sandbox.wandb_url}/storage/half"),
            ("POST", f"{sandbox.wandb_url}/graphql"),
            ("POST", f"{sandbox.vertex_rest_url}/v1/{PARENT}/customJobs"),
            ("POST", sandbox.faults_url),
        ):
            line = await scene.leave_in_the_middle(method, url)
            assert (line["status"], line["request"], line["response"]) == ("no answer", "partial", None)
        assert all(switch.hit == 0 for switch in sandbox.faults)
        await sandbox.faults.clear()
        assert sandbox.wandb.storage.read("half") is None
    assert not caplog.records
