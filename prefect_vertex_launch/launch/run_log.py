"""The log of a launch: that of its flow run or task run, or a plain one where there is none."""

from __future__ import annotations

import logging
from logging import LoggerAdapter
from typing import Any

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

_plain = logging.getLogger("prefect.vertex-launch.launch")


def run_log() -> logging.Logger | LoggerAdapter[Any]:
    """Return the logger of the run this code belongs to."""
    try:
        return get_run_logger()
    except MissingContextError:
        return _plain
