"""The limits that run queues share, by their names."""

from __future__ import annotations

from typing import Final

from prefect_vertex_launch.core.identity import name_part

# Nothing but launches counts under a limit with such a name.
SHARED_LIMIT_PREFIX: Final = "vertex-launch-shared:"


def shared_limit_name(*names: str) -> str:
    """Return the name of a limit that queues share: of all those of a server's entity, say."""
    return f"{SHARED_LIMIT_PREFIX}{':'.join(map(name_part, names))}"
