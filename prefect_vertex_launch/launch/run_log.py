"""The log of a launch: that of its flow run or task run, or a plain one where there is none."""

from __future__ import annotations

import logging

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

from prefect_vertex_launch.core.clean_log import CleanLog

_plain = logging.getLogger("prefect.vertex-launch.launch")


def run_log() -> CleanLog:
    """Return the logger of the run this code belongs to."""
    try:
        return CleanLog(get_run_logger(), {})
    except MissingContextError:
        return CleanLog(_plain, {})
