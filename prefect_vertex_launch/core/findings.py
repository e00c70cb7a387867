"""What an examination of a specification has found so far: everything wrong, everything doubtful."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterable

from prefect_vertex_launch.core.errors import Permanent, Problem
from prefect_vertex_launch.core.json_value import (
    FURTHER_PROBLEMS,
    MAX_PROBLEMS,
    at,
    kind_of,
    shown,
)
from prefect_vertex_launch.core.spelling import right_spelling


class TooManyProblems(Exception):
    """The search for problems ends here: a person reads a hundred, and an item may hold a million."""


class Findings:
    """Problems (the thing cannot be launched) and warnings (it can, but look), in the order found."""

    def __init__(self, refused: Iterable[str] = (), wrong_kinds: Iterable[str] = ()) -> None:
        self.problems: list[Problem] = []
        self._warnings: dict[tuple[str, str], None] = {}
        self._refused: set[str] = set(refused)
        self._wrong_kinds: set[str] = set(wrong_kinds)

    def successor(self) -> Findings:
        """Return findings without any yet, for which what was refused here is not missing."""
        return Findings(self._refused, self._wrong_kinds)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Each warning once."""
        return tuple(f"{where}: {what}" for where, what in self._warnings)

    @property
    def warned(self) -> tuple[tuple[str, str], ...]:
        """Each warning once, as where and what."""
        return tuple(self._warnings)

    @contextlib.contextmanager
    def refusing(self, refusal: type[Permanent]) -> Generator[None]:
        """Run a search for problems. At its end, or when it has found too many, raise them as `refusal`."""
        with contextlib.suppress(TooManyProblems):
            yield
        if self.problems:
            raise refusal(self.problems)

    def refuse(self, where: str, what: str, why: str = "", fix: str = "") -> None:
        """Note one problem. Raises TooManyProblems for the one after the hundredth.

        What is missing only because its value has been refused already is not noted again.
        """
        if what in {"missing", "empty"} and (where in self._refused or self._is_inside_wrong_kind(where)):
            return
        if len(self.problems) >= MAX_PROBLEMS:
            self.problems[MAX_PROBLEMS:] = [FURTHER_PROBLEMS]
            raise TooManyProblems
        self._refused.add(where)
        self.problems.append(Problem(where, what, why, fix))

    def has_refused(self, *roots: str) -> bool:
        """Tell whether something at or below one of `roots` has been refused."""
        return any(where == root or _is_below(where, root) for where in self._refused for root in roots)

    def is_refused(self, where: str) -> bool:
        """Tell whether exactly what stands at `where` has been refused."""
        return where in self._refused

    def _is_inside_wrong_kind(self, where: str) -> bool:
        return any(where[:end] in self._wrong_kinds for end, step in enumerate(where) if step in ".[")

    @property
    def has_enough_warnings(self) -> bool:
        """Whether no more warnings are kept."""
        return len(self._warnings) >= MAX_PROBLEMS

    def warn(self, where: str, what: str) -> None:
        """Note something doubtful at `where`; after a hundred warnings no more are kept."""
        if not self.has_enough_warnings:
            self._warnings[where, what] = None

    def expected(self, where: str, wanted: str, got: object, fix: str = "") -> None:
        """Note a value of the wrong kind; the value itself is not shown, it may be a secret."""
        self.refuse(where, f"expected {wanted}, got {kind_of(got)}", fix=fix or f"Write {wanted}.")
        self._wrong_kinds.add(where)

    def unknown_key(self, where: str, key: str, known: Collection[str], owner: str) -> None:
        """Note a key that `owner` does not have, with the right spelling where there is one."""
        meant = right_spelling(key, known)
        fix = f"Did you mean {meant}?" if meant else f"Known are: {', '.join(sorted(known))}."
        self.refuse(at(where, key), f"{shown(key)} is not a field of {owner}", fix=fix)
        if meant:  # what was meant is not missing as well
            self._refused.add(at(where, meant))


def _is_below(path: str, outer: str) -> bool:
    return path.startswith((f"{outer}.", f"{outer}["))
