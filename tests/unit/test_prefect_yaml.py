"""The deployments of a queue: in a clone, in the package, and in a project of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from typer.testing import CliRunner, Result

from prefect_vertex_launch.cli.main import app
from prefect_vertex_launch.cli.prefect_yaml import deployments, read_prefect_yaml

CHECKOUT = Path(__file__).parents[2]


def of_the_clone() -> list[dict[str, Any]]:
    return yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]


def of_the_package() -> list[dict[str, Any]]:
    return yaml.safe_load(read_prefect_yaml())["deployments"]


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def test_a_clone_deploys_the_same_as_the_package_but_for_where_the_flows_are():
    own = ("entrypoint", "pull")
    clone = [{key: value for key, value in entry.items() if key not in own} for entry in of_the_clone()]
    package = [{key: value for key, value in entry.items() if key not in own} for entry in of_the_package()]
    assert clone == package
    assert [entry["pull"] for entry in of_the_package()] == [[], [], []]


def test_both_deploy_the_same_flows_in_the_same_order(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    flows = [
        [load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False) for entry in written]
        for written in (of_the_clone(), of_the_package())
    ]
    assert [flow.name for flow in flows[0]] == ["agent", "launch", "enqueue"]
    assert [flow.fn for flow in flows[0]] == [flow.fn for flow in flows[1]]


def test_queue_and_pool_are_filled_in_whatever_they_are_called():
    agent, launch, enqueue = deployments("vertex-a100", 'a "pool": {x}')
    assert [entry["name"] for entry in (agent, launch, enqueue)] == ["vertex-a100"] * 3
    assert agent["parameters"]["queues"] == ["vertex-a100"]
    assert launch["parameters"] == enqueue["parameters"] == {"queue": "vertex-a100"}
    assert [entry["work_pool"] for entry in (agent, launch, enqueue)] == [{"name": 'a "pool": {x}'}] * 3


def test_init_writes_what_the_package_has_and_says_what_comes_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = init()
    assert result.exit_code == 0, result.output
    assert (tmp_path / "prefect.yaml").read_text() == read_prefect_yaml()
    assert "prefect --no-prompt deploy --all" in result.output
    assert "prefect worker start --pool vertex-launch" in result.output


def test_init_leaves_a_file_alone_that_is_there_unless_it_is_told_to_write_over_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.yaml").write_text("name: mine\n")

    refused = init()
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        f"error: there is a prefect.yaml in {tmp_path} already, and nothing was written",
        "hint: add the three entries that `vertex-launch init --print` prints below its `deployments:`, "
        "or write over it with --force",
    ]
    assert (tmp_path / "prefect.yaml").read_text() == "name: mine\n"

    assert init("--print").output == read_prefect_yaml()
    assert (tmp_path / "prefect.yaml").read_text() == "name: mine\n"

    assert init("--force").exit_code == 0
    assert (tmp_path / "prefect.yaml").read_text() == read_prefect_yaml()


def test_init_in_a_folder_that_is_gone_says_so_in_two_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.setattr(Path, "cwd", classmethod(lambda _: folder))
    folder.rmdir()
    result = init()
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {folder}/prefect.yaml cannot be written: No such file")
