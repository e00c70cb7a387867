"""Pushing a run by wandb's own client, in a process that starts in a folder of the user's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.wandb.push import push
from tests.sandbox.real_wandb import API_KEY

# What a project may have of its own, and what the program imports.
OWN_PACKAGES = ("flows", "blocks", "tests", "prefect_vertex_launch", "wandb", "prefect", "pydantic", "json")


async def test_no_package_in_the_current_directory_is_taken_for_ours_or_wandbs(
    backend: WandbBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_packages() -> None:
        for name in OWN_PACKAGES:
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('{name} is not to be imported')")

    await asyncio.to_thread(write_packages)
    monkeypatch.chdir(tmp_path)

    arguments = {"entity": "team", "project": "p", "queue_name": "vertex", "docker_image": "image"}
    item_id = await push(arguments, base_url=backend.base_url, api_key=SecretStr(API_KEY))

    assert backend.item(item_id) is not None
