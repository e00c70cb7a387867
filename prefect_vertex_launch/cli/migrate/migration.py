"""What becomes of an agent's configuration: settings of ours, and a row for each field it had."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from prefect_vertex_launch.core.errors import Problem
from prefect_vertex_launch.core.shared_limit import shared_limit_name

UNLIMITED: Final = -1
DEFAULT_STOP_SECONDS: Final = 60


class Fate(StrEnum):
    """What becomes of a field."""

    BLOCK = "block field"
    LIMIT = "Prefect limit"
    DEPLOYMENT = "deployment setting"
    NO_MEANING = "has no meaning here"
    CANNOT_MOVE = "cannot be moved"


@dataclass(frozen=True, slots=True)
class Row:
    """One field: its path in the file or the name of its variable, its value as text, what becomes of it."""

    key: str
    value: str
    fate: Fate
    becomes: str

    def __str__(self) -> str:
        joint = ": " if self.fate in {Fate.BLOCK, Fate.LIMIT, Fate.DEPLOYMENT} else " because "
        return f"{self.fate.value}{joint}{self.becomes}"


@dataclass(frozen=True, slots=True)
class Migration:
    """An agent's configuration as settings of ours, a row for each of its fields, and what is wrong.

    `entity` is None where the agent takes the key's default one. `max_jobs` and `max_schedulers` are
    -1 for no limit. `log_level` is Prefect's, or None for its default. With any of `problems` the
    settings are not to be used.
    """

    entity: str | None = None
    queues: tuple[str, ...] = ()
    max_jobs: int = 1
    max_schedulers: int = 1
    location: str | None = None
    secure_mode: bool = False
    stop_grace_seconds: float = DEFAULT_STOP_SECONDS
    start_timeout_seconds: float | None = None
    log_level: str | None = None
    rows: tuple[Row, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def shares_its_limit(self) -> bool:
        """Whether several queues count under one limit."""
        return len(self.queues) > 1 and self.max_jobs != UNLIMITED

    def limit_of_all(self, server: str, entity: str) -> str:
        """Return the limit under which all queues count, where they share one."""
        return shared_limit_name(server, entity)

    def block_fields(self, server: str, entity: str) -> dict[str, Any]:
        """Return the fields of a VertexLaunchQueue block that are the same for every queue of the agent."""
        return {
            "entity": entity,
            "location": self.location,
            "max_jobs": UNLIMITED if self.shares_its_limit else self.max_jobs,
            "shared_limits": [self.limit_of_all(server, entity)] if self.shares_its_limit else [],
            "max_schedulers": self.max_schedulers,
            "secure_mode": self.secure_mode,
            "stop_grace_seconds": self.stop_grace_seconds,
            "start_timeout_seconds": self.start_timeout_seconds,
        }
