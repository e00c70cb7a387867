"""The check that no module and no function is too long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lint.size import FUNCTION_LINES, MODULE_LINES, complaints

ROOT = Path(__file__).parents[2]


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def module(lines: int) -> str:
    return "x = 1\n" * lines


def function(lines: int, *, indent: str = "", start: str = "def long():", docstring: int = 0) -> str:
    """A function of so many lines, and of a docstring of so many more."""
    text = ['"""Say', *["much."] * (docstring - 2), '"""'] if docstring else []
    return "\n".join(
        [f"{indent}{start}", *(f"{indent}    {line}" for line in [*text, *["x = 1"] * (lines - 1)])]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (module(MODULE_LINES), []),
        (module(MODULE_LINES + 1), ["code/a.py: 401 lines; a module has at most 400"]),
        (function(FUNCTION_LINES), []),
        (
            f"x = 1\n{function(FUNCTION_LINES + 1)}",
            ["code/a.py:2: long has 41 lines; a function has at most 40"],
        ),
        (
            function(FUNCTION_LINES + 1, start="async def long():"),
            ["code/a.py:1: long has 41 lines; a function has at most 40"],
        ),
        (
            f"class A:\n{function(FUNCTION_LINES + 1, indent='    ')}",
            ["code/a.py:2: long has 41 lines; a function has at most 40"],
        ),
        (function(FUNCTION_LINES, docstring=30), []),
        (
            function(FUNCTION_LINES + 1, docstring=30),
            ["code/a.py:1: long has 41 lines; a function has at most 40"],
        ),
        (f"@decorated(\n    1,\n)\n{function(FUNCTION_LINES)}", []),
    ],
    ids=[
        "module", "long module", "function", "long function", "long coroutine", "long method",
        "long docstring", "long function with a long docstring", "decorator",
    ],
)  # fmt: skip
def test_what_is_too_long_is_named_with_its_place(tmp_path: Path, text: str, said: list[str]) -> None:
    write(tmp_path, "code/a.py", text)
    assert complaints(tmp_path, ["code"], []) == said


def test_every_module_below_the_folders_is_looked_at_and_no_other(tmp_path: Path) -> None:
    for name in ("code/a/b/c.py", "more/a.py", "other/a.py"):
        write(tmp_path, name, module(MODULE_LINES + 1))
    found = complaints(tmp_path, ["code", "more"], [])
    assert [line.partition(":")[0] for line in found] == ["code/a/b/c.py", "more/a.py"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert complaints(tmp_path, ["code"], []) == ["code: there is no such folder"]


def test_an_exempt_module_may_be_too_long_and_has_to_be(tmp_path: Path) -> None:
    write(tmp_path, "code/module.py", module(MODULE_LINES + 1))
    write(tmp_path, "code/function.py", function(FUNCTION_LINES + 1))
    write(tmp_path, "code/small.py", module(1))
    assert complaints(tmp_path, ["code"], ["code/module.py", "code/function.py"]) == []
    assert complaints(
        tmp_path, ["code"], ["code/module.py", "code/function.py", "code/small.py", "gone.py"]
    ) == [
        "code/small.py: nothing in it is too long; remove it from exempt in pyproject.toml",
        "gone.py: there is no such module; remove it from exempt in pyproject.toml",
    ]


@pytest.mark.parametrize(("lines", "code"), [(MODULE_LINES, 0), (MODULE_LINES + 1, 1)])
def test_the_command_fails_for_what_is_too_long_and_says_so(tmp_path: Path, lines: int, code: int) -> None:
    write(tmp_path, "pyproject.toml", "[tool.size]\nexempt = []\n")
    write(tmp_path, "code/a.py", module(lines))
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "lint" / "size.py", "code"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert ("code/a.py: 401 lines" in done.stderr) is bool(code)
