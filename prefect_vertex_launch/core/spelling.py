"""The right spelling of a name that is almost one of ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def snake_case(name: str) -> str:
    """Return `machineType` and `machine-type` as `machine_type`."""
    return _HUMP.sub("_", name).replace("-", "_").replace(" ", "_").lower()


def right_spelling(name: str, known: Iterable[str]) -> str | None:
    """Return the name of `known` that `name` was most likely meant to be, or None.

    camelCase, other letter case and dashes come first, then a few wrong letters.
    """
    by_form = {snake_case(candidate): candidate for candidate in known}
    # A name of any length may come from outside; comparing costs the square of it.
    form = snake_case(name[:100])
    if form in by_form:
        return by_form[form]
    close = difflib.get_close_matches(form, by_form, n=1, cutoff=0.75)
    return by_form[close[0]] if close else None
