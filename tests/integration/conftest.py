"""A real Prefect server, started once for the tests that talk to one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_RETRY_EXTRA_CODES,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)

START_SECONDS = 90.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class PrefectServer:
    """A running `prefect server start`: where it is and how a subprocess reaches it.

    `environment` is the whole environment for a subprocess: this one's without any PREFECT_*
    variable, plus a private PREFECT_HOME and this server's PREFECT_API_URL.
    """

    api_url: str
    environment: dict[str, str]
    home: Path
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(home: Path, api_url: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return environment | {
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_COLORS": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "COLUMNS": "200",
    }


def wait_until_healthy(process: subprocess.Popen[bytes], server: PrefectServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the Prefect server ended with {process.returncode}:\n{server.log.read_text()}")
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.api_url}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"the Prefect server was not up after {START_SECONDS:.0f} s:\n{server.log.read_text()}")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End `prefect server start` and the uvicorn it started: first asked, then made to."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def send_what_is_left() -> None:
    """Send the logs and events that this process still holds.

    At its exit it would try for more than a minute to send them to a server that is gone.
    """
    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=STOP_SECONDS)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """`prefect server start` on a free port.

    Its database is in memory. In a file, SQLite refuses a transaction that has read before another one
    has written; the server answers 503 then, and the client waits two seconds before it tries again.
    """
    home = tmp_path_factory.mktemp("prefect-home")
    port = free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    server = PrefectServer(api_url, clean_environment(home, api_url), home, home / "server.log")
    settings = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///:memory:",
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=server.environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
            start_new_session=True,
        )
        try:
            wait_until_healthy(process, server)
            yield server
        finally:
            send_what_is_left()
            stop_group(process)
            shutil.rmtree(home, ignore_errors=True)


@contextmanager
def prefect_client_of(server: PrefectServer) -> Iterator[None]:
    """The Prefect client of this process speaks to `server`."""
    overrides = {
        PREFECT_API_URL: server.api_url,
        PREFECT_HOME: server.home,
        PREFECT_LOCAL_STORAGE_PATH: server.home / "storage",
    }
    with temporary_settings(overrides, restore_defaults={PREFECT_API_KEY, PREFECT_CLIENT_RETRY_EXTRA_CODES}):
        yield


@pytest.fixture
def prefect_api(prefect_server: PrefectServer) -> Iterator[PrefectServer]:
    """The Prefect client of this process speaks to `prefect_server`."""
    with prefect_client_of(prefect_server):
        yield prefect_server
