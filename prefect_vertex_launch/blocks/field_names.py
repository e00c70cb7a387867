"""Mistyped names of a block's fields, which Prefect's blocks otherwise keep in silence."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from prefect_vertex_launch.core.spelling import right_spelling


def refuse_unknown_fields(block_name: str, fields: Collection[str], values: Any) -> Any:
    """Return `values` as they are. Raises ValueError for a name that is no field, with the right one."""
    if not isinstance(values, dict):
        return values
    for name in values:
        # Prefect adds names of its own.
        if name in fields or name.startswith("_") or name == "block_type_slug":
            continue
        near = right_spelling(name, fields)
        hint = f"; did you mean {near}?" if near else f"; there are {', '.join(fields)}"
        raise ValueError(f"{block_name} has no field {name!r}{hint}")
    return values
