"""Errors that nobody foresaw: logged whole under a reference, and told to others without their text."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from logging import LoggerAdapter
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect_vertex_launch.core.errors import Problem, Unforeseen

_PACKAGE = Path(__file__).parent.parent
_MAX_SHOWN_CHARACTERS = 500


def unforeseen(
    error: BaseException,
    *,
    where: str,
    log: logging.Logger | LoggerAdapter[Any],
    mask: Callable[[str], str],
) -> Unforeseen:
    """Log an error that nobody foresaw, and return what may be said of it elsewhere.

    Args:
        error: The error.
        where: What went wrong: `item …`, say.
        log: Gets the traceback, under a reference of eight characters.
        mask: Takes the secrets out of the error's text. The text stays in the log.
    """
    reference = uuid4().hex[:8]
    log.error("%s: unforeseen error %s\n%s", where, reference, mask("\n".join(_lines(error))))
    return Unforeseen(
        Problem(
            where,
            f"something went wrong that nobody foresaw: {type(error).__name__}{_place(error)}",
            why="this is an error of prefect-vertex-launch, not of the run",
            fix=f"Report it with the lines that the log has under {reference}.",
        )
    )


def _lines(error: BaseException) -> Iterator[str]:
    """Yield the tracebacks of an error and of those behind it, the last one first."""
    seen = set[int]()
    while True:
        seen.add(id(error))
        yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
        yield f"{type(error).__name__}: {_text(error)}"
        behind = error.__cause__ or error.__context__
        if behind is None or id(behind) in seen:
            return
        yield "which came after:"
        error = behind


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_MAX_SHOWN_CHARACTERS]
    except Exception:  # noqa: BLE001 - whatever its own text may raise
        return "it has no text"


def _place(error: BaseException) -> str:
    """Return the last place in this package that the error came through."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_PACKAGE)
    ]
    if not own:
        return ""
    return f" in {Path(own[-1].filename).relative_to(_PACKAGE)}, line {own[-1].lineno}"
