"""The figures of a scenario, as a table."""

from __future__ import annotations

import time
from collections import Counter

from tests.chaos.arena import Arena
from tests.chaos.auditor import Evidence, most_in_a_minute, most_live, repeated_reports

CREATE, LIST, GET, CANCEL = "CreateCustomJob", "ListCustomJobs", "GetCustomJob", "CancelCustomJob"


def figures(arena: Arena, evidence: Evidence) -> dict[str, object]:
    """Return what there is to say of a scenario that has ended, by name."""
    launches = Counter(run.state.lower() for run in evidence.flow_runs)
    every_call = [moment for moments in evidence.calls.values() for moment in moments]
    return {
        "items": len(evidence.expected),
        "launches": ", ".join(f"{count} {state}" for state, count in sorted(launches.items())),
        "jobs": len(evidence.jobs),
        "most live jobs, and max_jobs": f"{most_live(evidence.jobs)} / {evidence.max_jobs}",
        "kills": sum(arena.kills.values()),
        **{f"  {how}": count for how, count in sorted(arena.kills.items())},
        **arena.others,
        "agents": len(arena.nursery.agents),
        "starts of a launch's flow run, the most": max(run.run_count for run in evidence.flow_runs),
        "reports sent again": repeated_reports(evidence.items),
        "looks while things ran": arena.watch.sights,
        "calls to Vertex AI": len(every_call),
        **{f"  {name}": len(evidence.calls.get(name, ())) for name in (CREATE, LIST, GET, CANCEL)},
        "most calls in a minute": most_in_a_minute(every_call),
        "most submissions in a minute": most_in_a_minute(evidence.calls.get(CREATE, ())),
        "slots held in the end, and left in hand": f"{evidence.held_slots} / {evidence.slots_in_hand}",
        **{f"seconds until {what}": round(seconds, 1) for what, seconds in arena.moments.items()},
        "seconds": round(time.monotonic() - arena.started, 1),
    }


def table(rows: dict[str, object]) -> str:
    """Return the figures as lines of two columns."""
    width = max((len(name) for name in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
