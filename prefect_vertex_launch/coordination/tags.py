"""The tags by which launch flow runs are found again, in the UI and by the next agent."""

from __future__ import annotations

from uuid import UUID

from prefect_vertex_launch.launch.item import QueueItem

PRODUCT_TAG = "vertex-launch"
# On a launch that another agent has taken over, for people to see.
ADOPTED_TAG = "adopted"


def queue_tag(entity: str, queue: str) -> str:
    """Return the tag of every launch of one run queue."""
    return f"queue:{entity}/{queue}"


def owner_tag(agent_flow_run_id: UUID) -> str:
    """Return the tag of every launch that one agent's flow run carries."""
    return f"agent:{agent_flow_run_id}"


def owner_of(tags: list[str]) -> UUID | None:
    """Return the flow run of the agent that carries a launch with these tags, if any."""
    owners = [tag.removeprefix("agent:") for tag in tags if tag.startswith("agent:")]
    return UUID(owners[0]) if owners else None


def item_of(tags: list[str]) -> str | None:
    """Return the run queue item of a launch with these tags, if it has taken one."""
    return next((tag.removeprefix("item:") for tag in tags if tag.startswith("item:")), None)


def launch_tags(entity: str, queue: str, item: QueueItem) -> list[str]:
    """Return the tags of the launch of one item: product, queue, item, and the run if there can be one."""
    tags = [PRODUCT_TAG, queue_tag(entity, queue), f"item:{item.item_id}"]
    if run := item.run:
        tags += [f"project:{run.entity}/{run.project}", f"run:{run.run_id}"]
    return tags
