"""The net under each step of a launch: what leaves a step is an error of `core.errors`, without secrets.

What nobody foresaw is sorted by where it happened. Inside of an adapter it is about a service: the launch
waits and looks again. Anywhere else it is about the item.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from prefect_vertex_launch import coordination, vertex, wandb
from prefect_vertex_launch.coordination.prefect_api import PREFECT_FAILURES
from prefect_vertex_launch.core.errors import LaunchError, Transient
from prefect_vertex_launch.core.unforeseen import unforeseen
from prefect_vertex_launch.launch.launch import Launch
from prefect_vertex_launch.launch.run_log import run_log

P = ParamSpec("P")
T = TypeVar("T")

_SERVICES = tuple(Path(package.__path__[0]) for package in (coordination, vertex, wandb))


def with_net(
    step: Callable[Concatenate[Launch, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Launch, P], Coroutine[Any, Any, T]]:
    """Return a step that raises errors of `core.errors` only.

    They are without the launch's secrets, and without the errors behind them, whose texts are others'.
    """

    @functools.wraps(step)
    async def guarded(launch: Launch, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await step(launch, *args, **kwargs)
        except LaunchError as error:
            raise error.masked(launch.secrets.mask) from None
        except PREFECT_FAILURES as error:
            raise Transient(launch.secrets.mask(f"Prefect could not be asked: {error}")) from None
        except Exception as error:  # noqa: BLE001 - this is the outermost net
            raise _told(launch, error) from None

    return guarded


def _told(launch: Launch, error: Exception) -> LaunchError:
    """Return what may be said of an error that nobody foresaw, as one of a service or of the item."""
    where = f"item {launch.item.item_id}"
    told = unforeseen(error, where=where, log=run_log(), mask=launch.secrets.mask)
    return Transient(str(told)) if _is_about_a_service(error) else told


def _is_about_a_service(error: BaseException) -> bool:
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return any(file.is_relative_to(service) for file in files for service in _SERVICES)
