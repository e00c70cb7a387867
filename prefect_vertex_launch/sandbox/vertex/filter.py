"""The filters of ListCustomJobs: the part of https://google.aip.dev/160 that Vertex AI documents for jobs."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.sandbox.vertex.refusal import VertexRefusal, invalid_argument

JobTest = Callable[[Any], bool]

_MAX_FILTER_LENGTH: Final = 10_000
# Far below where Python's stack would end, while reading a filter or while trying it on a job.
_MAX_DEPTH: Final = 50
_TOKEN: Final = re.compile(
    r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|!=|<=|>=|[=<>:()*]|[^\s=<>:()!"'*]+)"""
)
_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EQUALITY: Final = frozenset({"=", "!="})


def parse_filter(text: str) -> JobTest:
    """Return the test that a filter describes; an empty filter passes every job.

    Raises:
        VertexRefusal: 400, for a filter that cannot be read or names a field that cannot be filtered by.
    """
    if len(text) > _MAX_FILTER_LENGTH:
        raise invalid_argument(f"The filter is longer than {_MAX_FILTER_LENGTH} characters.")
    return _Parser(_tokens(text)).whole()


def _tokens(text: str) -> list[str]:
    text = text.strip()
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(text[position : position + 20])
        tokens.append(match.group(1))
        position = match.end()
    return tokens


def _unreadable(near: str | None) -> VertexRefusal:
    where = f"near {near!r}" if near else "at its end"
    return invalid_argument(f"Invalid filter expression: it cannot be read {where}.")


class _Parser:
    """Recursive descent; OR binds tighter than AND, as AIP-160 has it."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0

    def whole(self) -> JobTest:
        if not self._tokens:
            return lambda _job: True
        test = self._all_of()
        if self._peek() is not None:
            raise _unreadable(self._peek())
        return test

    def _peek(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self) -> str:
        token = self._peek()
        if token is None:
            raise _unreadable(None)
        self._position += 1
        return token

    def _all_of(self) -> JobTest:
        tests = [self._any_of()]
        while self._peek() == "AND":
            self._take()
            tests.append(self._any_of())
        return lambda job: all(test(job) for test in tests)

    def _any_of(self) -> JobTest:
        tests = [self._term()]
        while self._peek() == "OR":
            self._take()
            tests.append(self._term())
        return lambda job: any(test(job) for test in tests)

    def _term(self) -> JobTest:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise invalid_argument("The filter is nested too deeply.")
        test = self._simple_term()
        self._depth -= 1
        return test

    def _simple_term(self) -> JobTest:
        token = self._take()
        if token == "NOT":  # noqa: S105  # a word of the filter language
            negated = self._term()
            return lambda job: not negated(job)
        if token == "(":  # noqa: S105  # a word of the filter language
            test = self._all_of()
            if (closing := self._take()) != ")":
                raise _unreadable(closing)
            return test
        return _restriction(token, self._take(), self._take())


def _restriction(field: str, comparator: str, literal: str) -> JobTest:
    if comparator not in _ORDER and comparator != ":":
        raise _unreadable(comparator)
    value = literal
    if literal[0] in "\"'":
        value = re.sub(r"\\(.)", r"\1", literal[1:-1])
    elif literal in {"(", ")", "=", "!=", "<", "<=", ">", ">=", ":"}:
        raise _unreadable(literal)
    if field == "labels" or field.startswith("labels."):
        return _label_test(field.removeprefix("labels").removeprefix("."), comparator, value)
    if field == "state":
        return _state_test(comparator, value)
    if field in {"display_name", "displayName"}:
        return _name_test(field, comparator, value)
    if field in {"create_time", "createTime"}:
        return _time_test(comparator, value)
    raise invalid_argument(f"Invalid filter expression: jobs cannot be filtered by {field!r}.")


def _comparison(field: str, comparator: str, *, equality_only: bool) -> Callable[[Any, Any], bool]:
    if comparator not in (_EQUALITY if equality_only else _ORDER):
        raise invalid_argument(f"Invalid filter expression: {field} does not support {comparator!r}.")
    return _ORDER[comparator]


def _name_test(field: str, comparator: str, value: str) -> JobTest:
    if comparator == ":":
        return lambda job: _is_like(job.display_name, value.split("*"))
    compare = _comparison(field, comparator, equality_only=True)
    return lambda job: compare(job.display_name, value)


def _is_like(text: str, parts: list[str]) -> bool:
    """Tell whether `text` is `parts` with anything between them; a regex may take for ever with many."""
    if len(parts) == 1:
        return text == parts[0]
    first, *middle, last = parts
    if not text.startswith(first):
        return False
    position = len(first)
    for part in middle:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return len(text) - position >= len(last) and text.endswith(last)


def _label_test(key: str, comparator: str, value: str) -> JobTest:
    if comparator == ":":
        if not key:
            return lambda job: value in job.labels
        return lambda job: key in job.labels and value in {"*", job.labels[key]}
    compare = _comparison("labels", comparator, equality_only=True)
    return lambda job: compare(job.labels.get(key), value)


def _state_test(comparator: str, value: str) -> JobTest:
    compare = _comparison("state", comparator, equality_only=True)
    if value not in JobState.__members__:
        raise invalid_argument(f"Invalid filter expression: {value!r} is not a job state.")
    state = JobState[value].value
    return lambda job: compare(job.state, state)


def _time_test(comparator: str, value: str) -> JobTest:
    compare = _comparison("create_time", comparator, equality_only=False)
    moment = Timestamp()
    try:
        moment.FromJsonString(value)
    except ValueError as error:
        raise invalid_argument(f"Invalid filter expression: {value!r} is not an RFC 3339 time.") from error
    nanoseconds = moment.ToNanoseconds()
    return lambda job: compare(job.create_time.ToNanoseconds(), nanoseconds)
