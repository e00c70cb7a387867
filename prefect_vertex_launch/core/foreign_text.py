"""Text that somebody else wrote, made harmless where it is shown: in a terminal, a log, or on a page.

A run's name is a stranger's. Written out as it is it may clear a screen, set a window's title, forge a line
of a log or a row of a table, and load an image of any host into a page.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Characters that a terminal or a reader obeys instead of showing them: control and format characters, halves
# of surrogate pairs, and separators of lines and paragraphs.
_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# It joins the parts of an emoji.
_JOINER: Final = "\N{ZERO WIDTH JOINER}"
# What Markdown reads: anywhere, at the beginning of a line, and as an address to make a link of.
# An underscore inside of a word is one.
_MARKS: Final = re.compile(r"([\\`*\[\]!|~]|(?<![^\W_])_|_(?![^\W_]))")
_MARKS_AT_START: Final = re.compile(r"^(\s*)([#+=-])")
_NUMBER_AT_START: Final = re.compile(r"^(\s*\d+)([.)])")
_ADDRESS: Final = re.compile(r"(:)(?=//)|(?<=www)(\.)", re.IGNORECASE)
_LINE_END: Final = re.compile(r"\r\n|\r|\n")


def one_line(text: str) -> str:
    """Return a text in one line: what would be obeyed is shown as `\\n`, `\\x1b` or `\\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def several_lines(text: str, *, indent: str = "") -> str:
    """Return a text whose lines stay; each further one begins with `indent`."""
    return f"\n{indent}".join(one_line(line) for line in _LINE_END.split(text))


def as_markdown(text: str) -> str:
    """Return Markdown that shows a text as it is, in one line, also inside of a table."""
    shown = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    marked = _ADDRESS.sub(r"\\\g<0>", _MARKS.sub(r"\\\1", shown))
    return _NUMBER_AT_START.sub(r"\1\\\2", _MARKS_AT_START.sub(r"\1\\\2", marked))


def lines_as_markdown(text: str) -> str:
    """Return Markdown that shows each line of a text as it is."""
    return "  \n".join(as_markdown(line) for line in _LINE_END.split(text))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _OBEYED or character == _JOINER:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()
