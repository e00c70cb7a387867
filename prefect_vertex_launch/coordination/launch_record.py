"""The labels of a launch's flow run by which its slot is found again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

# The lease of a launch's slot: as a job, or as a sweep scheduler.
LEASE_LABEL = "vertex-launch.lease"
SCHEDULER_LEASE_LABEL = "vertex-launch.scheduler-lease"
# What the label says of a launch whose job has ended, and of one that has no slot.
GIVEN_BACK = "given back"
NO_SLOT = ""


def slot_labels(label: str, text: str, limit_names: Sequence[str], taken: datetime | None) -> dict[str, str]:
    """Return the labels that say which slot a launch has, under which limits, and since when if known."""
    since = {} if taken is None else {_since_label(label): taken.isoformat()}
    return {label: text, _limits_label(label): json.dumps([*limit_names]), **since}


def taken_of(labels: Mapping[str, object], label: str = LEASE_LABEL) -> datetime | None:
    """Return when a launch's slot was taken, as its flow run's labels have it."""
    noted = labels.get(_since_label(label))
    return None if noted is None else datetime.fromisoformat(str(noted))


def notes_slot(labels: Mapping[str, object], label: str, limit_name: str) -> bool:
    """Return whether a launch notes a slot under a limit, as its flow run's labels have it.

    One that does not say under which limits is taken to count under any.
    """
    limits = labels.get(_limits_label(label))
    return lease_of(labels, label) is not None and (limits is None or limit_name in json.loads(str(limits)))


def lease_of(labels: Mapping[str, object], label: str = LEASE_LABEL) -> UUID | None:
    """Return the lease of a launch's slot, as its flow run's labels have it."""
    if not (noted := labels.get(label)):
        return None
    try:
        return UUID(str(noted))
    except ValueError:
        return None


def _since_label(label: str) -> str:
    return f"{label}-since"


def _limits_label(label: str) -> str:
    return f"{label}-limits"
