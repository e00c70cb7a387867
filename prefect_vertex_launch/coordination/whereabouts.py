"""Where a launch's jobs may be, noted on its flow run before there can be any.

The queue's block says where jobs go, and is changed now and then: to another region that has machines, for
example. Whoever goes on with a launch looks for its jobs wherever they may have been sent before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

WHEREABOUTS_LABEL = "vertex-launch.jobs-in"


def whereabouts_of(labels: Mapping[str, object]) -> frozenset[str]:
    """Return where a launch's jobs may be, as its flow run notes it: `projects/…/locations/…` each."""
    return frozenset(str(parent) for parent in json.loads(str(labels.get(WHEREABOUTS_LABEL, "[]"))))


def whereabouts_labels(parents: Iterable[str]) -> dict[str, str]:
    """Return the label of a flow run that notes where its launch's jobs may be."""
    return {WHEREABOUTS_LABEL: json.dumps(sorted(set(parents)))}
