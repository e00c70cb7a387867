"""The tags by which launch flow runs are found again, in the UI and by the next agent."""

from __future__ import annotations

from uuid import UUID

PRODUCT_TAG = "vertex-launch"


def queue_tag(entity: str, queue: str) -> str:
    """Return the tag of every launch of one run queue."""
    return f"queue:{entity}/{queue}"


def item_tag(item_id: str) -> str:
    """Return the tag of the launch of one run queue item."""
    return f"item:{item_id}"


def run_tag(run_id: str) -> str:
    """Return the tag of the launch of one W&B run."""
    return f"run:{run_id}"


def owner_tag(agent_flow_run_id: UUID) -> str:
    """Return the tag of every launch that one agent's flow run carries."""
    return f"agent:{agent_flow_run_id}"


def owner_of(tags: list[str]) -> UUID | None:
    """Return the flow run of the agent that carries a launch with these tags, if any."""
    owners = [tag.removeprefix("agent:") for tag in tags if tag.startswith("agent:")]
    return UUID(owners[0]) if owners else None
