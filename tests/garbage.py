"""Python's garbage collector in processes that import much and leave little behind."""

from __future__ import annotations

import gc

OBJECTS_PER_COLLECTION = 10_000


def collect_rarely() -> None:
    """Look for garbage after so many objects from here on, and never among what is there already."""
    gc.freeze()
    gc.set_threshold(OBJECTS_PER_COLLECTION, 10, 10)
