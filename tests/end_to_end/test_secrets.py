"""Canaries: keys that must be nowhere but where they belong, looked for in everything that was written."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import POOL, LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer, prefect_client_of, send_what_is_left
from tests.end_to_end.shared_prefect import clean_environment, shared_server
from tests.eventually import finished

AGENTS_KEY = "canary_agent_" + "a" * 40
AUTHORS_KEY = "canary_author_" + "b" * 40
SECRET_KEY = "canary_secret_" + "c" * 40
TOKEN = "canary_token_" + "d" * 40
# Secrets that the run itself brings along, one for each way in and each awkward character.
BROUGHT = {
    "HF_TOKEN": 'canary_hub_it\'s "quoted" \\ and long enough to be cut ' + "e" * 60,
    "DB_PASSWORD": "canary_lines_\nsecond line of it\n",
}
ARGUMENT = "canary_argument_" + "f" * 40
SECRET = "projects/test-project/secrets/wandb/versions/1"
SHOWS_KEY = "import os; assert os.environ['WANDB_API_KEY'].startswith('canary_')"
# What may hold the key of an item: the answer that brings it, and the job that it is for.
OF_THE_JOB = {"popFromRunQueue", "GetRunQueueItemSpec", "CreateCustomJob", "GetCustomJob"}


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[PrefectServer]:
    """A Prefect server whose database can be searched."""
    directory = tmp_path / "prefect"
    database = f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"
    with shared_server(directory, lambda _url: None, database) as api_url:
        home = directory / "home"
        yield PrefectServer(api_url, clean_environment(home, api_url), home)
        send_what_is_left()


async def serve(server: PrefectServer, tmp_path: Path, *queues: LaunchQueue) -> bytes:
    """Drain queues by an agent in a process of its own; return what it printed."""
    arguments = [argument for queue in queues for argument in ("--queue", queue.name)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "prefect_vertex_launch.cli.main", "agent", "--drain", *arguments,
        env=server.environment | {
            "PREFECT_LOGGING_LEVEL": "DEBUG", "TEAM_TOKEN": TOKEN,
            "TMPDIR": str(tmp_path), "HOME": str(tmp_path),
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed, _ = await finished(process.communicate())
    return printed


def push_all(queue: LaunchQueue) -> list[str]:
    """One run that ends well, one that fails, one that is refused."""
    env = [{"name": "TEAM_TOKEN", "value": "${TEAM_TOKEN}"}]
    env += [{"name": name, "value": value} for name, value in BROUGHT.items()]
    pool = {**POOL, "container_spec": {"image_uri": "${image_uri}", "command": ["python"], "env": env}}
    spec = {"worker_pool_specs": [pool]}
    changes: dict[str, Any] = {
        "resource_args": {"gcp-vertex": {"spec": spec}}, "_wandb_api_key": AUTHORS_KEY,
    }  # fmt: skip
    public = {
        "location": "${TEAM_TOKEN}",
        "labels": {"key": "${TEAM_TOKEN}"},
        "display_name": "${TEAM_TOKEN}",
    }
    refused = {"resource_args": {"gcp-vertex": {"spec": {**spec, **public}}}}
    quoted = {**changes, "overrides": {"args": ["--api-key", ARGUMENT], "entry_point": BROUGHT["HF_TOKEN"]}}
    queue.push("python", **quoted)
    return [
        queue.push("python", "-c", SHOWS_KEY, **changes),
        queue.push("python", "-c", f"{SHOWS_KEY}; raise SystemExit(3)", **changes),
        queue.push("python", "-c", SHOWS_KEY, **{**changes, **refused}),
    ]


@pytest.mark.slow
async def test_no_key_is_written_anywhere_but_where_it_belongs(
    file_server: PrefectServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("log") / "requests"
    with prefect_client_of(file_server):
        async with Sandbox(
            queued_seconds=0, pending_seconds=0, api_key=AGENTS_KEY, secrets={SECRET: SECRET_KEY},
            request_log=log,
        ) as sandbox:  # fmt: skip
            plain, secret = LaunchQueue(sandbox), LaunchQueue(sandbox)
            await plain.create(allowed_macros=["TEAM_TOKEN"])
            await secret.create(allowed_macros=["TEAM_TOKEN"], api_key_secret=SECRET)
            items = [push_all(queue) for queue in (plain, secret)]
            printed = await serve(file_server, tmp_path, plain, secret)
            messages = [
                [queue.item(item).error["message"] for item in ids]
                for queue, ids in zip((plain, secret), items, strict=True)
            ]
        await asyncio.to_thread(send_what_is_left)

    for good, failed, refused in messages:
        assert "no-run" in good
        assert "exited with 3" in failed
        assert "spec.labels.key: holds the value of a secret macro" in refused
        assert "spec.display_name: holds the value of a secret macro" in refused
    written = await asyncio.to_thread(files_of, tmp_path)
    written["what the agent printed"] = printed
    assert any(name.endswith("prefect.db") for name in written)
    for name, content in written.items():
        for canary in (AGENTS_KEY, AUTHORS_KEY, SECRET_KEY, TOKEN, "canary_hub_", "canary_lines_", ARGUMENT):
            assert canary.encode() not in content, f"{canary} is in {name}"
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    assert_requests_hold_keys_only_where_they_belong(requests, secret)


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_requests_hold_keys_only_where_they_belong(requests: list[Any], secret: LaunchQueue) -> None:
    assert len(requests) > 50
    for request in requests:
        text = json.dumps(request)
        assert AGENTS_KEY not in text
        operation = request["operation"]
        if AUTHORS_KEY in text or TOKEN in text:
            assert operation in OF_THE_JOB, request
            # A queue that names a secret keeps every key out of its jobs.
            assert AUTHORS_KEY not in text or operation == "popFromRunQueue" or secret.name not in text
        if SECRET_KEY in text:
            assert request["server"] == "google", request
