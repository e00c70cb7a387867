"""The errors of the core, each saying what happened, where, why and what to do.

    LaunchError
    ├── Transient                  try again; `retry_after_seconds` if the other side named a time
    │   └── OverQuota              Vertex AI takes no more jobs for now; nothing was created
    ├── OutcomeUnknown             a write that may have happened; look before doing it again
    └── Permanent                  trying again cannot help; carries one or more `Problem`s
        ├── InvalidRunSpec         the run queue item's own payload
        ├── InvalidQueueConfig     `spec` / `run` of the queue
        ├── AuthenticationFailed   a key or token that the other side does not accept
        ├── PermissionDenied       a known caller that may not do this
        ├── NotFound               a queue, item, run or job that is not there
        ├── Conflict               a write that someone else made first
        ├── Refused                anything else the other side will not do, in its own words
        └── Unforeseen             an error of our own that nobody foresaw; the log has its traceback

No message ever holds a secret: errors are shown in the Prefect UI and at W&B.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterable
from dataclasses import astuple, dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in four parts.

    `where` is a path a person can follow (`spec.worker_pool_specs[0].replica_count`, `item …`),
    `what` the fact, `why` the rule behind it, `fix` what to do; `why` and `fix` may be empty.
    """

    where: str
    what: str
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}"
        if self.why:
            text += f" ({self.why})"
        if self.fix:
            text += f". {self.fix}"
        return text

    def masked(self, mask: Callable[[str], str]) -> Problem:
        """Return the problem with each of its texts as `mask` returns it."""
        return Problem(*(mask(text) for text in astuple(self)))


class LaunchError(Exception):
    """The root of every error that the core raises on purpose."""

    def masked(self, mask: Callable[[str], str]) -> Self:
        """Return the error with its text as `mask` returns it, and without the errors behind it."""
        masked = copy.copy(self)
        masked.args = tuple(mask(text) if isinstance(text, str) else text for text in self.args)
        masked.__cause__ = masked.__context__ = masked.__traceback__ = None
        return masked


class Transient(LaunchError):
    """A failure that may be gone on the next try.

    `retry_after_seconds` is the pause the other side asked for, or None.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class OverQuota(Transient):
    """A job that was not created because a quota is used up, of machines or of requests.

    `is_capacity` tells a quota of machines, which may stay used up for hours, from one of requests a
    minute.
    """

    def __init__(self, message: str, *, is_capacity: bool, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.is_capacity = is_capacity


class OutcomeUnknown(LaunchError):
    """A write whose answer was lost: it may or may not have happened."""


class Permanent(LaunchError):
    """A failure that no repetition can cure; all its problems at once."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(self.problems)

    def masked(self, mask: Callable[[str], str]) -> Self:
        """Return the error with each text of its problems as `mask` returns it."""
        masked = super().masked(mask)
        masked.problems = tuple(problem.masked(mask) for problem in self.problems)
        masked.args = (masked.problems,)
        return masked

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} problems:"]
        lines += [f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1)]
        return "\n".join(lines)


class InvalidRunSpec(Permanent):
    """The run queue item's payload cannot be launched as it is."""


class InvalidQueueConfig(Permanent):
    """`spec` or `run` of the queue cannot become a CustomJob."""


class AuthenticationFailed(Permanent):
    """The other side does not accept our key or token."""


class PermissionDenied(Permanent):
    """The other side knows us and says no."""


class NotFound(Permanent):
    """What was asked for does not exist, or is not visible to us."""


class Conflict(Permanent):
    """Someone else made this write first."""


class Refused(Permanent):
    """The other side refused the request; its own words are in the problem."""


class Unforeseen(Permanent):
    """Something that nobody foresaw; `core.unforeseen` makes it, with a reference to the log."""


@contextlib.contextmanager
def waiting_if_denied(*also: type[Permanent]) -> Generator[None]:
    """Raise Transient for PermissionDenied and `also`: somebody will grant us what every launch needs.

    Such a refusal is no fault of the item, so its launch waits.
    """
    try:
        yield
    except (PermissionDenied, *also) as error:
        raise Transient(str(error)) from error
