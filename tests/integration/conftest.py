"""A real Prefect server, one for all the tests that talk to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_RETRY_EXTRA_CODES,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from tests.integration.shared_prefect import STOP_SECONDS, clean_environment, shared_server

__all__ = ["PrefectServer", "prefect_client_of", "send_what_is_left"]


@dataclass(frozen=True)
class PrefectServer:
    """A running `prefect server start`: where it is and how a subprocess reaches it.

    `environment` is the whole environment for a subprocess: this one's without any PREFECT_*
    variable, plus a private PREFECT_HOME and this server's PREFECT_API_URL.
    """

    api_url: str
    environment: dict[str, str]
    home: Path


def send_what_is_left() -> None:
    """Send the logs and events that this process still holds.

    At its exit it would try for more than a minute to send them to a server that is gone.
    """
    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=STOP_SECONDS)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """`prefect server start` on a free port, shared by the workers of pytest-xdist."""
    home = tmp_path_factory.mktemp("prefect-home")

    def at(api_url: str) -> PrefectServer:
        return PrefectServer(api_url, clean_environment(home, api_url), home)

    def register_blocks(api_url: str) -> None:
        # Two workers that save their first blocks at once would both create the types.
        with prefect_client_of(at(api_url)):
            VertexLaunchQueue.register_type_and_schema()

    own = tmp_path_factory.getbasetemp()
    session = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with shared_server(session / "prefect-server", register_blocks) as api_url:
        try:
            yield at(api_url)
        finally:
            send_what_is_left()


@contextmanager
def prefect_client_of(server: PrefectServer) -> Iterator[None]:
    """The Prefect client of this process speaks to `server`."""
    overrides = {
        PREFECT_API_URL: server.api_url,
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
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
