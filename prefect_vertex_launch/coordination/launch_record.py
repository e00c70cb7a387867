"""What a launch's flow run says of it: tags for people and for finding it again, labels for the next agent.

What must outlive a process is a label and no tag. Tags are written all at once, so a write of another agent
that is on its way would take one off; Prefect merges labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.wandb.queue import RunPath

PRODUCT_TAG = "vertex-launch"
# On a launch that another agent has taken over, for people to see.
ADOPTED_TAG = "adopted"

# Somebody cancelled it in Prefect, and another agent goes on with it since.
CANCELLED = "vertex-launch.cancelled"
# A job of it was created although another one might have been there that no list showed yet.
MAY_HAVE_DUPLICATE = "vertex-launch.may-have-duplicate"

# Where jobs of it may be. The queue's block says where jobs go, and a person may change that. Whoever goes on
# with a launch looks for its jobs wherever they were sent before.
PARENTS_LABEL = "vertex-launch.jobs-in"

# How long it has waited for quota, or with its job for machines, when its agent left it.
WAITED_LABEL = "vertex-launch.waited"

# The lease of a launch's slot: as a job, or as a sweep scheduler.
LEASE_LABEL = "vertex-launch.lease"
SCHEDULER_LEASE_LABEL = "vertex-launch.scheduler-lease"
# What the label says of a launch whose job has ended, and of one that has no slot.
GIVEN_BACK = "given back"
NO_SLOT = ""


def owner_tag(agent_flow_run_id: UUID) -> str:
    """Return the tag of every launch that belongs to one agent's flow run."""
    return f"agent:{agent_flow_run_id}"


def owner_of(tags: Iterable[str]) -> UUID | None:
    """Return the flow run of the agent that a launch with these tags belongs to, if any."""
    owners = [tag.removeprefix("agent:") for tag in tags if tag.startswith("agent:")]
    return UUID(owners[0]) if owners else None


def item_of(tags: Iterable[str]) -> str | None:
    """Return the run queue item of a launch with these tags, if it has taken one."""
    return next((tag.removeprefix("item:") for tag in tags if tag.startswith("item:")), None)


def launch_tags(queue: QueueIdentity, item_id: str, run: RunPath | None) -> list[str]:
    """Return the tags of the launch of one item: product, queue, item, and the run if there can be one."""
    tags = [PRODUCT_TAG, queue.tag, f"item:{item_id}"]
    if run is not None:
        tags += [f"project:{run.entity}/{run.project}", f"run:{run.run_id}"]
    return tags


def flag(name: str) -> dict[str, str]:
    """Return the label that says that something holds for a launch."""
    return {name: "yes"}


def parents_of(labels: Mapping[str, object]) -> frozenset[str]:
    """Return where a launch's jobs may be, as its flow run says: `projects/…/locations/…` each."""
    return frozenset(str(parent) for parent in json.loads(str(labels.get(PARENTS_LABEL, "[]"))))


def parents_labels(parents: Iterable[str]) -> dict[str, str]:
    """Return the label of a flow run that says where its launch's jobs may be."""
    return {PARENTS_LABEL: json.dumps(sorted(set(parents)))}


def waited_labels(seconds: float, *, has_job: bool) -> dict[str, str]:
    """Return the label that says how long a launch has waited, with a job or for one."""
    return {WAITED_LABEL: json.dumps({"seconds": round(seconds, 1), "has_job": has_job})}


def waited_of(labels: Mapping[str, object]) -> tuple[float, bool]:
    """Return how long a launch has waited as its labels have it, in seconds, and whether with a job."""
    waited = json.loads(str(labels.get(WAITED_LABEL, "{}")))
    return float(waited.get("seconds", 0.0)), bool(waited.get("has_job", False))


def slot_labels(label: str, text: str, limit_names: Sequence[str]) -> dict[str, str]:
    """Return the labels that say which slot a launch has, and under which limits."""
    return {label: text, _limits_label(label): json.dumps([*limit_names])}


def has_slot_under(labels: Mapping[str, object], label: str, limit_name: str) -> bool:
    """Return whether a launch has a slot under a limit, as its flow run's labels have it.

    One that does not say under which limits is taken to count under any.
    """
    limits = labels.get(_limits_label(label))
    return lease_of(labels, label) is not None and (limits is None or limit_name in json.loads(str(limits)))


def lease_of(labels: Mapping[str, object], label: str = LEASE_LABEL) -> UUID | None:
    """Return the lease of a launch's slot, as its flow run's labels have it."""
    if not (text := labels.get(label)):
        return None
    try:
        return UUID(str(text))
    except ValueError:
        return None


def _limits_label(label: str) -> str:
    return f"{label}-limits"
