"""Texts held against patterns with gaps, in time that grows with the text and the pattern and no faster.

A regular expression with several `.*` tries every place of each of them: a few thousand characters that do
not match would hold the event loop, and with it every queue, for minutes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Final

# What `shlex.quote` leaves as it is.
_NEEDS_QUOTES: Final = re.compile(r"[^\w@%+=:,./-]", re.ASCII)


def command_line(words: Sequence[str]) -> str:
    """Return what `shlex.join` returns, without looking at each word by itself where none needs quotes."""
    if all(words) and not _NEEDS_QUOTES.search("".join(words)):
        return " ".join(words)
    return shlex.join(words)


def matches_with_gaps(
    texts: Sequence[str], whole: str, *, may_fill: Callable[[str], bool] = lambda _gap: True
) -> bool:
    """Tell whether `whole` is `texts` in their order, with a gap of any length between each two of them.

    Args:
        texts: The parts between the gaps, at least one; the first and the last one stand at the ends.
        whole: The text.
        may_fill: Tells whether a text may be in a gap; it has to decide by each character alone.
    """
    first, *others = texts
    if not others:
        return whole == first
    *inner, last = others
    end = len(whole) - len(last)
    if end < len(first) or not whole.startswith(first) or not whole.endswith(last):
        return False
    position = len(first)
    for text in inner:
        # The leftmost place is enough. What may stand in a gap may stand in the next one as well, so every
        # later place leaves less room to what follows.
        found = whole.find(text, position, end)
        if found < 0 or not may_fill(whole[position:found]):
            return False
        position = found + len(text)
    return may_fill(whole[position:end])
