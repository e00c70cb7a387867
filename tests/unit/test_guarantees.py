"""What docs/guarantees.md names as proof is there: tests, their files, and targets of the Makefile."""

from __future__ import annotations

import re

import pytest

from tests.unit.named_tests import ROOT, functions_of, paths_of

TEXT = (ROOT / "docs" / "guarantees.md").read_text()
# Whatever looks like a test, so that one with a slip in its name is not passed over.
TESTS = sorted(set(re.findall(r"`([^`\n]*(?:test_|::)[^`\n]*)`", TEXT)))
TARGETS = sorted(set(re.findall(r"`make ([^`\s]+)", TEXT)))
THERE = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("named", TESTS)
def test_a_test_that_is_named_exists(named: str):
    file, separator, function = named.partition("::")
    paths = paths_of(file)
    assert len(paths) == 1, "the name of a file, without its directory, has to say which one is meant"
    functions = functions_of(paths[0])
    if separator:
        assert function in functions
    else:
        assert any(name.startswith("test_") for name in functions)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_is_named_exists(target: str):
    assert target in THERE


def test_something_is_named_in_each_way():
    """If the patterns found nothing, the tests above would prove nothing."""
    assert any("::" in named for named in TESTS)
    assert any("::" not in named for named in TESTS)
    assert TARGETS
