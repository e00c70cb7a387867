"""Why the sandbox cannot start as asked."""

from __future__ import annotations


class StartRefusal(Exception):
    """A port or a state file that cannot be had: `what` is the fact, `fix` what to do about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.what = what
        self.fix = fix
