"""Modules over 400 lines and functions over 40; `make lint` fails for them.

    python -m tests.lint.size prefect_vertex_launch benchmarks

A function's docstring does not count, its decorators neither. `[tool.size]` in pyproject.toml lists the
modules that may be too long for now. One that need not be listed any more is reported as well.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

MODULE_LINES: Final = 400
FUNCTION_LINES: Final = 40

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def complaints(root: Path, folders: Sequence[str], exempt: Sequence[str]) -> list[str]:
    """Return what is wrong below `root`, one line each.

    Args:
        root: The folder that holds pyproject.toml.
        folders: The folders that are looked through, relative to `root`.
        exempt: The modules that may be too long, relative to `root`.
    """
    found: list[str] = []
    for folder in folders:
        if not (root / folder).is_dir():
            found.append(f"{folder}: there is no such folder")
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if name not in exempt:
                found += _too_long(path, name)
    for name in exempt:
        path = root / name
        if not path.is_file():
            found.append(f"{name}: there is no such module; remove it from exempt in pyproject.toml")
        elif not _too_long(path, name):
            found.append(f"{name}: nothing in it is too long; remove it from exempt in pyproject.toml")
    return found


def _too_long(path: Path, name: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    count = len(text.splitlines())
    found = [f"{name}: {count} lines; a module has at most {MODULE_LINES}"] if count > MODULE_LINES else []
    for function in _functions(ast.parse(text)):
        if (count := _length(function)) > FUNCTION_LINES:
            what = f"{function.name} has {count} lines; a function has at most {FUNCTION_LINES}"
            found.append(f"{name}:{function.lineno}: {what}")
    return found


def _functions(tree: ast.Module) -> Iterator[_Function]:
    return (node for node in ast.walk(tree) if isinstance(node, _Function))


def _length(function: _Function) -> int:
    """Return the lines from `def` to the end, without those of the docstring."""
    first = function.body[0]
    docstring = _lines(first) if ast.get_docstring(function, clean=False) is not None else 0
    return _lines(function) - docstring


def _lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def main() -> None:
    """Look through the folders that are named on the command line, from the folder of pyproject.toml."""
    root = Path.cwd()
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    if found := complaints(root, sys.argv[1:], settings["tool"]["size"]["exempt"]):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
