"""Any JSON that the sandbox or one of our adapters may get, and how much of it is tried.

With FUZZ_EXAMPLES it is more than the fixed few of the test suite, and others each time: `make fuzz`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.sampled_from([1 << 63, 1 << 14_000, 0.5, 1e308, float("nan"), float("inf")])
    | st.sampled_from(["", "team", "vertex", "item", "PENDING", "a\0b", "\ud800", "x" * 999, "²", "{}"])
    | st.text(max_size=6)
)
NAMES_OF_FIELDS = st.sampled_from(["id", "name", "data", "errors", "message"]) | st.text(max_size=4)
anything = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES_OF_FIELDS, inner, max_size=3),
    max_leaves=6,
)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
    )
