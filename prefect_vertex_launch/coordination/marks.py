"""What must not be forgotten of a launch when its process ends: labels of its flow run.

They are no tags, as those are written all at once: a write of another agent that was on its way would take
one off. Labels are merged by Prefect.
"""

from __future__ import annotations

# Somebody cancelled it in Prefect, and another agent goes on with it since.
CANCELLED = "vertex-launch.cancelled"
# A job of it was created although another one might have been there that no list showed yet.
MAY_HAVE_TWIN = "vertex-launch.may-have-twin"


def mark(name: str) -> dict[str, str]:
    """Return the labels that set a mark."""
    return {name: "yes"}
