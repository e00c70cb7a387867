"""The tests that documents name, looked up among those that there are."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]


@functools.cache
def functions_of(path: str) -> frozenset[str]:
    """Return the names of the functions in a file; none if there is no such file."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    return frozenset(
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def paths_of(name: str) -> list[str]:
    """Return the paths of the test files of that name or path, as `functions_of` takes them."""
    root = ROOT if name.startswith("tests/") else ROOT / "tests"
    found = root.glob(name) if name.startswith("tests/") else root.rglob(name)
    return [path.relative_to(ROOT).as_posix() for path in found]
