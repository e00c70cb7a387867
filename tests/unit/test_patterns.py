"""Patterns with gaps match what a regular expression would, and look at each character once."""

from __future__ import annotations

import re
import shlex
from typing import Self

import pytest
from google.api_core.exceptions import BadRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_vertex_launch.core.errors import Refused
from prefect_vertex_launch.core.json_value import MAX_PROBLEMS
from prefect_vertex_launch.jobspec.own_words import OwnWords
from prefect_vertex_launch.jobspec.patterns import command_line, matches_with_gaps
from prefect_vertex_launch.vertex.errors import translated

PLAIN = re.compile("[ab]*")
parts = st.lists(st.text("ab c\n", max_size=3), min_size=1, max_size=5)
MACROS = "gs://b/${entity_name}/${project_name}/${run_id}/out"


class CountedText(str):
    """A text that counts the characters which searches in it pass over."""

    __slots__ = ("passed",)
    passed: int

    def __new__(cls, text: str) -> Self:
        counted = super().__new__(cls, text)
        counted.passed = 0
        return counted

    def find(self, sub: str, start: int = 0, end: int | None = None, /) -> int:  # type: ignore[override]
        found = super().find(sub, start, end)
        self.passed += (len(self) if found < 0 else found + len(sub)) - start
        return found


@settings(max_examples=500)
@given(parts, st.text("ab c\n", max_size=12))
def test_any_text_may_be_in_a_gap(texts: list[str], whole: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, texts)), whole, re.DOTALL)
    assert matches_with_gaps(texts, whole) is (expected is not None)


@settings(max_examples=500)
@given(parts, st.text("ab c\n", max_size=12))
def test_only_some_characters_may_be_in_a_gap(texts: list[str], whole: str) -> None:
    expected = re.fullmatch("[ab]*".join(map(re.escape, texts)), whole)
    found = matches_with_gaps(texts, whole, may_fill=lambda gap: PLAIN.fullmatch(gap) is not None)
    assert found is (expected is not None)


@given(parts, st.lists(st.text("ab", max_size=3), min_size=4, max_size=4))
def test_what_was_filled_in_is_found_again(texts: list[str], brought: list[str]) -> None:
    whole = texts[0] + "".join(gap + text for gap, text in zip(brought, texts[1:], strict=False))
    assert matches_with_gaps(texts, whole, may_fill=lambda gap: PLAIN.fullmatch(gap) is not None)


@pytest.mark.parametrize("end", ["", "/out", "/uot"])
def test_a_variable_of_slashes_is_passed_over_once(end: str) -> None:
    own = OwnWords(variables={("OUT", MACROS)})
    value = CountedText("gs://b" + "/" * 3_500 + end)
    assert own.has_variable("OUT", value) is (end == "/out")
    assert value.passed <= len(value)
    assert value.passed > 0 or not value.endswith("/out")


@pytest.mark.parametrize("word", ["a" * 20_000, "a" * 20_000 + "b", "a" * 20_000 + "!b"])
def test_a_command_with_macros_is_passed_over_once(word: str) -> None:
    own = OwnWords(commands={("sh", "${run_id}a${author}a${run_name}a${run_id}b")})
    counted = CountedText(word)
    assert own.has_command(("sh", counted)) is word.endswith("ab")
    assert counted.passed <= len(word)


@pytest.mark.parametrize(
    "text", ["1" * 400_000, "1." + " " * 400_000, "1.Field: " * 50_000, "1.Field: a; Message: b\t" * 20_000]
)
def test_the_errors_in_a_long_answer_of_vertex(text: str) -> None:
    """The first one would take hours if each of its digits began a search to the end."""
    error = translated(BadRequest(text), "job")
    assert isinstance(error, Refused)
    assert 1 <= len(error.problems) <= MAX_PROBLEMS


def test_a_command_line_is_what_a_shell_is_given() -> None:
    for words in ([], [""], ["a", ""], ["a b", "c"], ["python", "-m", "a/b:c,d=e.f@g%h+i"], ["ä"], ["a\n"]):
        assert command_line(words) == shlex.join(words)
