"""What a name was meant to be, at a cost that does not depend on how long and how many names are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import pytest

from prefect_vertex_launch.cli import deploy
from prefect_vertex_launch.coordination.prefect_api import no_such_block
from prefect_vertex_launch.core.spelling import MAX_CHARACTERS, MAX_KNOWN, right_spelling
from prefect_vertex_launch.sandbox.wandb.graphql.operations import near_miss

NAMES = ["machine_type", "replica_count", "command", "gpu-a100"]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what grows by the product of the lengths of each two names that are compared."""
    products: list[int] = []
    compare = difflib.get_close_matches

    def counted(word: str, possibilities: Iterable[str], *given: Any, **named: Any) -> list[str]:
        names = list(possibilities)
        products.extend(len(word) * len(name) for name in names)
        return compare(word, names, *given, **named)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    return products


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("machineType", "machine_type"), ("replica-count", "replica_count"), ("comand", "command"),
     ("gpu-a10", "gpu-a100"), ("xyz", None), ("", None)],
)  # fmt: skip
def test_what_was_meant(typo: str, meant: str | None) -> None:
    assert right_spelling(typo, NAMES) == meant


def test_how_like_names_have_to_be() -> None:
    assert right_spelling("comman", ["command"], likeness=0.9) == "command"
    assert right_spelling("comma", ["command"], likeness=0.9) is None


def test_no_long_name_is_compared(compared: list[int]) -> None:
    long = "machine_typ" * 40_000
    assert right_spelling(long, NAMES) is None
    assert right_spelling("comand", [long, "command"]) == "command"
    assert max(compared) <= MAX_CHARACTERS**2


def test_a_name_is_compared_with_a_thousand_others_at_most(compared: list[int]) -> None:
    assert right_spelling("comand", ["command", *map(str, range(50_000))]) == "command"
    assert len(compared) == MAX_KNOWN


def test_the_names_of_blocks_and_operations_are_compared_alike(compared: list[int]) -> None:
    names = [f"gpu-{number}" for number in range(3_000)]
    assert "Did you mean" not in str(no_such_block("x" * 10_000, names))
    assert "Did you mean 'gpu-1'" in str(no_such_block("Gpu_1", names))
    assert near_miss("o" * 10_000) is None
    assert max(compared, default=0) <= MAX_CHARACTERS**2
    assert not hasattr(deploy, "difflib")
