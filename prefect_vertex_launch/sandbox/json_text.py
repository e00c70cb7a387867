"""JSON text from outside, no deeper than everything can take that it comes to afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, cast

MAX_DEPTH: Final = 100
_TOO_DEEP: Final = f"nested more than {MAX_DEPTH} deep"


def read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Python reads what is nested almost as deep as its stack allows, and then can neither write it nor read
    it again where more stands on the stack. So the bound lies far below.

    Raises ValueError if it is no JSON, or nested more than 100 deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if _is_too_deep(value):
        raise ValueError(_TOO_DEEP)
    return value


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [member for item in level for member in _members(item) if isinstance(member, dict | list)]
        if not level:
            return False
    return True


def _members(item: object) -> Iterable[object]:
    if isinstance(item, dict):
        return cast("dict[str, object]", item).values()
    return cast("list[object]", item) if isinstance(item, list) else ()
