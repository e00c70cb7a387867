"""Calls of Prefect's client that it must not ask for again by itself."""

from __future__ import annotations

from prefect.context import SettingsContext, get_settings_context


def asking_once() -> SettingsContext:
    """Return settings in which Prefect's client does not ask again.

    It does so for as long as a minute, whether or not the server has heard it: what was right when it was
    asked for first may be wrong by then. `temporary_settings` would read the whole environment anew, and hold
    up everything else for 30 ms.
    """
    context = get_settings_context()
    client = context.settings.client.model_copy(update={"max_retries": 0})
    settings = context.settings.model_copy(update={"client": client})
    return SettingsContext(profile=context.profile, settings=settings)
