"""The kinds of faults: what can go wrong, where, and what has to be said about each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Literal

Server = Literal["wandb", "vertex"]
ANY: Final = "any"
RPCS: Final = ("CreateCustomJob", "GetCustomJob", "ListCustomJobs", "CancelCustomJob", "DeleteCustomJob")


class What(StrEnum):
    """What goes wrong; docs/faults.md says for each what a client sees."""

    # On the wire, at both servers.
    ANSWER = "answer"
    CUT_BEFORE = "cut_before"
    CUT_AFTER = "cut_after"
    CUT_MIDWAY = "cut_midway"
    GARBAGE = "garbage"
    HANG = "hang"
    HANG_AFTER = "hang_after"
    SLOW = "slow"
    DOWN = "down"
    # What the answer says or what becomes of the thing it is about.
    DELETED = "deleted"
    HIDDEN = "hidden"
    OMITTED = "omitted"
    DOUBLED = "doubled"
    PAGE_DRIFT = "page_drift"
    STALE = "stale"
    STATE = "state"
    NULL = "null"
    FALSE = "false"
    SAME_ITEM = "same_item"
    LEASE_ENDS = "lease_ends"
    RUN_SPEC = "run_spec"
    STOP_POLLING = "stop_polling"


WIRE: Final = frozenset({
    What.ANSWER, What.CUT_BEFORE, What.CUT_AFTER, What.CUT_MIDWAY, What.GARBAGE, What.HANG, What.HANG_AFTER,
    What.SLOW,
})  # fmt: skip
AT_WANDB: Final = WIRE | {
    What.DOWN, What.DELETED, What.NULL, What.FALSE, What.SAME_ITEM, What.LEASE_ENDS, What.RUN_SPEC,
    What.STOP_POLLING,
}  # fmt: skip
# The RPCs that can have it; none of them is asked for a server that is down.
AT_VERTEX: Final[Mapping[What, tuple[str, ...]]] = {
    What.DOWN: (),
    What.DELETED: ("GetCustomJob", "ListCustomJobs", "CancelCustomJob"),
    What.HIDDEN: ("CreateCustomJob",),
    What.OMITTED: ("ListCustomJobs",),
    What.DOUBLED: ("ListCustomJobs",),
    What.PAGE_DRIFT: ("ListCustomJobs",),
    What.STALE: ("GetCustomJob", "ListCustomJobs"),
    What.STATE: ("CreateCustomJob", "GetCustomJob", "ListCustomJobs", "CancelCustomJob"),
    **dict.fromkeys(WIRE, RPCS),
}
# The fields that say which calls are hit.
CALLS: Final = frozenset({"operation", "about", "times", "skip", "probability", "seed"})
# The fields that say more about a fault, and those of which it needs one.
FIELDS: Final[Mapping[What, frozenset[str]]] = {
    What.ANSWER: frozenset({"status", "code", "message", "retry_after_seconds"}),
    What.SLOW: frozenset({"seconds"}),
    What.DOWN: frozenset({"seconds"}),
    What.HIDDEN: frozenset({"lists", "seconds"}),
    What.STATE: frozenset({"state", "code", "message"}),
    What.RUN_SPEC: frozenset({"run_spec", "size_bytes"}),
}
NEEDED: Final[Mapping[What, tuple[str, ...]]] = {
    What.ANSWER: ("status", "code"),
    What.SLOW: ("seconds",),
    What.STATE: ("state",),
    What.HIDDEN: ("lists", "seconds"),
    What.RUN_SPEC: ("run_spec", "size_bytes"),
}
