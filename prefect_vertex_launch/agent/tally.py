"""What one agent did: how many launches it started, adopted and handed over, and how they ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """What one agent did."""

    launched: int = 0
    adopted: int = 0
    handed_over: int = 0
    ends: Counter[str] = field(default_factory=Counter[str])

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.launched + other.launched,
            self.adopted + other.adopted,
            self.handed_over + other.handed_over,
            self.ends + other.ends,
        )

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.ends.items())) or "none ended"
        return f"{self.launched} launched, {self.adopted} adopted, {self.handed_over} handed over; {ends}."
