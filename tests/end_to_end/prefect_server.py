"""A running Prefect server, and the client of this process that speaks to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prefect.context import SettingsContext, get_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_RETRY_EXTRA_CODES,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    Settings,
    temporary_settings,
)

from tests.end_to_end.shared_prefect import STOP_SECONDS


@dataclass(frozen=True)
class PrefectServer:
    """A running `prefect server start`: where it is and how a subprocess reaches it.

    `environment` is the whole environment for a subprocess: this one's without any PREFECT_*
    variable, plus a private PREFECT_HOME and this server's PREFECT_API_URL.
    """

    api_url: str
    environment: dict[str, str]
    home: Path


def send_what_is_left() -> None:
    """Send the logs and events that this process still holds.

    At its exit it would try for more than a minute to send them to a server that is gone.
    """
    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=STOP_SECONDS)


@contextmanager
def prefect_client_of(server: PrefectServer) -> Iterator[None]:
    """The Prefect client of this process speaks to `server`."""
    settings = _settings_for(server.api_url, server.home)
    with SettingsContext(profile=get_settings_context().profile, settings=settings):
        yield


@cache
def _settings_for(api_url: str, home: Path) -> Settings:
    # Prefect validates all of its settings for each change of one; nearly every test would wait for that.
    overrides = {
        PREFECT_API_URL: api_url,
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
        PREFECT_HOME: home,
        PREFECT_LOCAL_STORAGE_PATH: home / "storage",
    }
    defaults = {PREFECT_API_KEY, PREFECT_CLIENT_RETRY_EXTRA_CODES}
    with temporary_settings(overrides, restore_defaults=defaults) as settings:
        return settings
