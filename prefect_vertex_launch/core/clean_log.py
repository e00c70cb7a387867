"""Loggers whose lines are without secrets, and show control characters instead of obeying them."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from logging import LoggerAdapter
from typing import Any, Final

from prefect_vertex_launch.core.foreign_text import several_lines
from prefect_vertex_launch.core.secrets import Secrets, own_secrets

# So a further line cannot be taken for a record of its own.
_FURTHER_LINE: Final = "    | "
_secrets: ContextVar[Secrets] = ContextVar("vertex_launch_secrets", default=own_secrets)


def keep_from_log(secrets: Secrets) -> None:
    """Take these secrets out of what is logged from now on in this task, and in those that it starts."""
    _secrets.set(secrets)


class CleanLog(LoggerAdapter[Any]):
    """A logger that cleans what it is given. Of a message of several lines the further ones are marked."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message, as `logging.Logger.log` does."""
        if self.isEnabledFor(level):
            text = str(msg) % args if args else str(msg)
            clean = several_lines(_secrets.get().mask(text), indent=_FURTHER_LINE)
            self.logger.log(level, "%s", clean, **kwargs)


def clean_log(name: str) -> CleanLog:
    """Return the logger of this name."""
    return CleanLog(logging.getLogger(name), {})
