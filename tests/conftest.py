"""The sandbox for every test that wants one, and the environment of real wandb processes."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from prefect_vertex_launch.sandbox.server import Sandbox
from tests import authorities
from tests.garbage import collect_rarely


def pytest_configure() -> None:
    """Nobody here reads a hundred certificates for each of its clients, or looks for garbage in modules.

    How long an example of hypothesis takes tells of the machine and not of the code.
    """
    os.environ.update(authorities.ENVIRONMENT)
    gc.disable()
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """From here on there is garbage, but not among what was imported."""
    collect_rarely()
    gc.enable()


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A sandbox of the test's own, whose jobs start at once."""
    async with Sandbox(queued_seconds=0, pending_seconds=0) as running:
        yield running


@pytest.fixture
def wandb_environment(sandbox: Sandbox, tmp_path: Path) -> dict[str, str]:
    """The whole environment of a wandb process that knows nothing but the sandbox."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {
        "HOME": str(tmp_path),
        "WANDB_BASE_URL": sandbox.wandb_url,
        "WANDB_API_KEY": sandbox.api_key,
        "WANDB_DIR": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "data"),
    }
