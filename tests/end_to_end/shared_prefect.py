"""One Prefect server for all processes of a test session, ended with the last of them.

Its keeper, this file run as a program, starts it and then waits for a lock of which every user holds a
share. A lock goes with its process, however that ends: no server is left behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from prefect_vertex_launch.cli.demo.servers import free_port
from tests import authorities

START_SECONDS = 300.0
STOP_SECONDS = 15.0
# In a file, SQLite refuses a transaction that has read before another one has written; the server answers
# 503 then, and the client waits two seconds before it tries again.
IN_MEMORY = "sqlite+aiosqlite:///:memory:"
SETTINGS = {
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "2",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
}


def clean_environment(home: Path, api_url: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return (
        environment
        | authorities.ENVIRONMENT
        | {
            "PREFECT_API_URL": api_url,
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # The server does not ask for a token, and each client would ask it for one.
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
            "PREFECT_CLI_COLORS": "false",
            "PREFECT_CLI_PROMPT": "false",
            "DO_NOT_TRACK": "1",
            "COLUMNS": "200",
        }
    )


@contextmanager
def shared_server(
    directory: Path, prepare: Callable[[str], None], database_url: str = IN_MEMORY
) -> Iterator[str]:
    """The API URL of the server that everybody with the same directory shares.

    Whoever comes first starts it and prepares it, given its URL; the others wait for that.
    """
    directory.mkdir(exist_ok=True)
    address = directory / "api_url"
    with (directory / "users.lock").open("w") as users:
        with (directory / "start.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            # Waits while a keeper, who has this lock then, ends the server of users that are gone.
            fcntl.flock(users, fcntl.LOCK_SH)
            if not address.exists():
                _start_keeper(directory, address, database_url)
                prepare(address.read_text())
        yield address.read_text()


def _start_keeper(directory: Path, address: Path, database_url: str) -> None:
    with (directory / "server.log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, __file__, str(directory), database_url],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while not address.exists():
        if keeper.poll() is not None:
            raise RuntimeError(f"no Prefect server:\n{(directory / 'server.log').read_text()}")
        time.sleep(0.1)


def keep(directory: Path, database_url: str) -> None:
    """Start the server, say where it is, and end it when nobody holds a share of the lock any more."""
    home, port = directory / "home", free_port()
    home.mkdir(exist_ok=True)
    api_url = f"http://127.0.0.1:{port}/api"
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=clean_environment(home, api_url)
        | SETTINGS
        | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url},
        cwd=home,
        start_new_session=True,
    )
    address = directory / "api_url"
    try:
        _wait_until_healthy(server, api_url)
        written = directory / "api_url.part"
        written.write_text(api_url)
        written.rename(address)
        with (directory / "users.lock").open("w") as users:
            fcntl.flock(users, fcntl.LOCK_EX)
            address.unlink()
            _stop_group(server)
            shutil.rmtree(home, ignore_errors=True)
    finally:
        _stop_group(server)


def _wait_until_healthy(server: subprocess.Popen[bytes], api_url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the Prefect server ended with {server.returncode}")
        with suppress(httpx.TransportError):
            if httpx.get(f"{api_url}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the Prefect server was not up after {START_SECONDS:.0f} s")


def _stop_group(server: subprocess.Popen[bytes]) -> None:
    """End `prefect server start` and the uvicorn it started: first asked, then made to."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2])
