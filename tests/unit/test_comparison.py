"""docs/compared-with-wandb-agent.md is complete, and each of its rows is proved by tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from wandb.sdk.launch.agent.config import AgentConfig

from prefect_vertex_launch.core import child_process
from tests.unit.named_tests import ROOT, functions_of

DOCUMENT = ROOT / "docs" / "compared-with-wandb-agent.md"
BEHAVIOURS = [f"B{number}" for number in range(1, 69)]
DEFECTS = [f"D{number}" for number in range(1, 45)]
# What `construct_launch_spec`, `LaunchProject` and the backend put into a run spec.
RUN_SPEC_KEYS = [
    "uri", "job", "docker.docker_image", "image_uri", "git", "entity", "project", "queue_entity", "name",
    "run_id", "author", "resource", "resource_args", "template_variables", "overrides.args",
    "overrides.run_config", "overrides.entry_point", "overrides.artifacts", "overrides.files",
    "overrides.dockerfile", "overrides.working_dir", "sweep_id", "_wandb_api_key", "_resume_count",
    "priority", "builder", "registry", "python_version",
]  # fmt: skip
PROOF = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
UNFINISHED = re.compile(r"\b(open|todo|tbd|not yet)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    number: str
    text: str
    cells: tuple[str, ...]

    @property
    def proof(self) -> str:
        return self.cells[-1]


def rows() -> list[Row]:
    found: list[Row] = []
    for line in DOCUMENT.read_text().splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split(" | "))
        if line.startswith("| ") and re.fullmatch(r"[BD]\d+", cells[0].strip()):
            found.append(Row(cells[0], line, cells))
    return found


def test_every_behaviour_and_every_defect_has_its_row():
    assert [row.number for row in rows()] == [*BEHAVIOURS, *DEFECTS]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.number)
def test_a_row_is_complete_and_its_proofs_exist(row: Row):
    assert len(row.cells) == 5
    assert all(row.cells)
    assert not UNFINISHED.search(PROOF.sub("", row.text)), row.text
    proofs = PROOF.findall(row.proof)
    assert proofs, row.text
    assert not PROOF.sub("", row.proof).replace("<br>", "").strip()
    assert [f"{path}::{name}" for path, name in proofs if name not in functions_of(path)] == []


def test_every_key_of_a_run_spec_is_among_the_behaviours():
    said = {name for row in rows() if row.number[0] == "B" for name in re.findall(r"`([^`]+)`", row.cells[1])}
    assert set(RUN_SPEC_KEYS) <= said


def test_every_field_of_the_installed_agents_configuration_is_among_the_behaviours():
    said = {name for row in rows() if row.number[0] == "B" for name in re.findall(r"`([^`]+)`", row.cells[1])}
    assert set(AgentConfig.model_fields) <= said


# Programs of their own: the demo and the sandbox start local servers and the sandbox's images, `push`
# runs W&B's own client, and `container` runs inside of the job.
PROGRAMS = ("cli/demo/", "cli/main", "wandb/push", "sandbox/", "container/")


def modules_of_a_launch() -> Iterator[Path]:
    package = ROOT / "prefect_vertex_launch"
    for path in package.rglob("*.py"):
        name = path.relative_to(package).with_suffix("").as_posix()
        if not name.startswith(PROGRAMS):
            yield path


def used_names(path: Path) -> set[str]:
    """Return the modules that a file imports, and the last names of all that it uses."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {node.module or "", *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.Name):
            used.add(node.id)
    return used


STARTS_A_PROCESS = {
    "subprocess", "create_subprocess_exec", "create_subprocess_shell", "multiprocessing", "popen", "spawnv",
    "posix_spawn", "execv", "execvp", "fork", "system", "eval", "exec", "ShellOperation", "shell_run_command",
}  # fmt: skip


def test_nothing_of_an_item_can_become_a_process_here():
    """Neither a program nor code can be started by anything that a launch goes through."""
    found = {path.name: used_names(path) & STARTS_A_PROCESS for path in modules_of_a_launch()}
    # It runs one program, our own, which is the same whatever the item is.
    assert found.pop("child_process.py") == {"create_subprocess_exec"}
    assert child_process._PROGRAM == "from prefect_vertex_launch.core.child_process import main; main()"
    text = (ROOT / "prefect_vertex_launch/core/child_process.py").read_text()
    (call,) = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.create_subprocess_exec"
    ]
    assert [ast.unparse(argument) for argument in call.args] == ["sys.executable", "'-P'", "'-c'", "_PROGRAM"]
    assert {name: used for name, used in found.items() if used} == {}
    assert len(found) > 50


def test_a_launch_writes_no_file():
    writes = {"tempfile", "mkdtemp", "mkstemp", "write_text", "write_bytes", "mkdir", "makedirs", "shutil"}
    command_line = {"migrate.py"}  # what a person starts, and not for a launch
    found = {
        path.name: used_names(path) & writes
        for path in modules_of_a_launch()
        if path.name not in command_line
    }
    assert {name: used for name, used in found.items() if used} == {}
