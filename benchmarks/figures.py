"""A measured figure beside its aim, and the statistics that make one out of samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; `aim` is the most it may be, None where there is no aim."""

    what: str
    value: float
    unit: str
    aim: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is met, None without one."""
        return None if self.aim is None else self.value <= self.aim

    def to_json(self) -> dict[str, Any]:
        """Return the figure with its verdict."""
        return {
            "what": self.what,
            "value": round(self.value, 4),
            "unit": self.unit,
            "aim": self.aim,
            "is_met": self.is_met,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What one scenario measured: its figures, the sizes it ran with, and the samples behind them."""

    scenario: str
    sizes: dict[str, Any]
    figures: list[Figure]
    samples: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """Return everything, the samples too."""
        return {
            "scenario": self.scenario,
            "sizes": self.sizes,
            "figures": [figure.to_json() for figure in self.figures],
            "samples": self.samples,
        }


def median(samples: Sequence[float]) -> float:
    """Return the middle of the samples."""
    return statistics.median(samples)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that is not below `percent` of them: a value that was measured."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
