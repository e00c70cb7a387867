"""What breaks an invariant."""

from __future__ import annotations


class Violation(AssertionError):
    """An invariant that does not hold; without a number it is something that nobody foresaw."""

    def __init__(self, what: str, invariant: int | None = None) -> None:
        super().__init__(what if invariant is None else f"invariant {invariant}: {what}")
        self.invariant = invariant

    def told_by(self, test: str, last_effects: str) -> Violation:
        """Return the same with a test in which it happens again, and what came last before it."""
        told = Violation(
            f"{self}\n\nIt happens again in this test:\n\n{test}\n\nThe last effects:\n{last_effects}"
        )
        told.invariant = self.invariant
        return told


def unforeseen(what: str) -> Violation:
    """Return the violation for what the code under test had not reckoned with."""
    return Violation(f"something nobody foresaw: {what}")


def require(holds: bool, invariant: int, what: str) -> None:
    """Raise Violation unless it holds."""
    if not holds:
        raise Violation(what, invariant)
