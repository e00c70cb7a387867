"""The right spelling of a name that is almost one of those that there are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from itertools import islice
from typing import Final

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# Names come from outside, and so may those that there are. To compare two names costs about the product of
# their lengths.
MAX_CHARACTERS: Final = 100
MAX_KNOWN: Final = 1000


def snake_case(name: str) -> str:
    """Return `machineType` and `machine-type` as `machine_type`."""
    return _HUMP.sub("_", name).replace("-", "_").replace(" ", "_").lower()


def right_spelling(name: str, known: Iterable[str], *, likeness: float = 0.75) -> str | None:
    """Return the name of `known` that `name` was most likely meant to be, or None.

    camelCase, other letter case and dashes come first, then a few wrong letters: `likeness` is from 0 to 1,
    where 1 is the same name. A name of more than a hundred characters is not looked at, and of more than
    a thousand names only the first ones are.
    """
    if len(name) > MAX_CHARACTERS:
        return None
    by_form = {
        snake_case(candidate): candidate
        for candidate in islice(known, MAX_KNOWN)
        if len(candidate) <= MAX_CHARACTERS
    }
    form = snake_case(name)
    if form in by_form:
        return by_form[form]
    close = difflib.get_close_matches(form, by_form, n=1, cutoff=likeness)
    return by_form[close[0]] if close else None
