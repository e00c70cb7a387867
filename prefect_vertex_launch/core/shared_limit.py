"""The limits that run queues share, by their names."""

from __future__ import annotations

from typing import Final

# Nothing but launches counts under a limit with such a name.
SHARED_LIMIT_PREFIX: Final = "vertex-launch-shared:"


def shared_limit_name(name: str) -> str:
    """Return the name of a limit that queues share: of all those of an entity, say."""
    return f"{SHARED_LIMIT_PREFIX}{name}"
