"""A real Prefect server, one for all the tests that talk to it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer, prefect_client_of, send_what_is_left
from tests.end_to_end.shared_prefect import clean_environment, shared_server


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


@pytest.fixture
def prefect_api(prefect_server: PrefectServer) -> Iterator[PrefectServer]:
    """The Prefect client of this process speaks to `prefect_server`."""
    with prefect_client_of(prefect_server):
        yield prefect_server


@pytest.fixture
async def queue(sandbox: Sandbox, prefect_api: PrefectServer) -> LaunchQueue:
    """A queue with the usual settings, and its block."""
    launch_queue = LaunchQueue(sandbox)
    await launch_queue.create()
    return launch_queue
