"""Two jobs of one item that are live at once."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.vertex_model import Job


@dataclass(frozen=True)
class Duplicate:
    """Two jobs of one item that were live at once, the older one first."""

    older: Job
    younger: Job

    @property
    def surplus(self) -> Job:
        """The one that goes: of one attempt the younger, of two attempts that of the older attempt."""
        return self.younger if self.younger.attempt == self.older.attempt else self.older

    @property
    def kept(self) -> Job:
        """The one that stays."""
        return self.older if self.surplus is self.younger else self.younger

    @property
    def listed_from(self) -> float:
        """From when on a list of live jobs shows both: none whose state no client knows is among them."""
        return max(
            max(job.listed_from, job.odd_until if job.odd_until > job.started else 0.0)
            for job in (self.older, self.younger)
        )
