"""The log of a launch: that of its flow run or task run, or a plain one where there is none."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from logging import LoggerAdapter
from typing import Any

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

from prefect_vertex_launch.core.secrets import Secrets, own_secrets

_plain = logging.getLogger("prefect.vertex-launch.launch")
_secrets: ContextVar[Secrets] = ContextVar("vertex_launch_secrets", default=own_secrets)


def keep_from_log(secrets: Secrets) -> None:
    """Take these secrets out of what is logged from now on in this task, and in those that it starts."""
    _secrets.set(secrets)


def run_log() -> LoggerAdapter[Any]:
    """Return the logger of the run this code belongs to; what is logged is without secrets."""
    try:
        logger = get_run_logger()
    except MissingContextError:
        logger = _plain
    return _Masked(logger, {})


class _Masked(LoggerAdapter[Any]):
    """A logger whose lines are without the secrets of the launch that logs."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            text = str(msg) % args if args else str(msg)
            self.logger.log(level, "%s", _secrets.get().mask(text), **kwargs)
