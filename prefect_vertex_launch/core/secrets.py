"""The secrets that this process knows, and texts without them.

A text is masked where it leaves us: a log line, a state, an artifact, a message to W&B. By then somebody may
have quoted a secret in it, or cut it, so every form that a secret takes in a text is looked for.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final
from urllib.parse import quote, quote_plus

MASK: Final = "********"
_SECRET_NAME_PARTS: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
# Shorter texts are found everywhere; masking them would make a message unreadable and hide nothing.
MIN_SECRET_CHARACTERS: Final = 6
# So much of a secret's beginning is masked wherever it stands, with all of it that follows.
_SURE_CHARACTERS: Final = 12
# Beside the sign that something was left out, less is enough. The first of its dots may be the secret's.
_CUT: Final = re.compile(r"…|\.{2,}|\Z")
_LEAST_CUT_CHARACTERS: Final = 4
# A text that ends may just end: keys begin with the name of who made them.
_LEAST_CHARACTERS_AT_END: Final = 9
# Nobody cuts a text so that more of it than this is left beside the cut.
_LONGEST_REST_CHARACTERS: Final = 4096
# Who knows more than this shows nothing: each is looked for in ten forms.
MAX_SECRETS: Final = 500


def is_secret_name(name: str) -> bool:
    """Tell whether a variable of this name is likely to hold a secret."""
    return any(part in name.upper() for part in _SECRET_NAME_PARTS)


class Secrets:
    """Some secrets, and the texts without them. Its `repr` does not show them.

    `beside` are secrets that others add to; they are known here, too.
    """

    def __init__(self, *values: str, beside: Secrets | None = None) -> None:
        self._values = frozenset[str]()
        self._beside = beside
        self.add(*values)

    def __repr__(self) -> str:
        return f"{len(self.values)} secrets"

    def add(self, *values: str) -> None:
        """Know these secrets, too, from now on."""
        self._values |= {value for value in values if len(value) >= MIN_SECRET_CHARACTERS}

    @property
    def values(self) -> frozenset[str]:
        """The secrets themselves."""
        return self._values if self._beside is None else self._values | self._beside.values

    def mask(self, text: str) -> str:
        """Return a text without the secrets."""
        return mask(text, self.values)


# The keys of the blocks that this process has opened, those that were replaced since included.
own_secrets: Final = Secrets()


def mask(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with every secret replaced, quoted by others or cut short as well.

    Of a text that may hold one of more than 500 secrets nothing is returned but that.
    """
    known = frozenset(secrets)
    if len(known) > MAX_SECRETS:
        return f"{MASK} (not shown: it may hold one of {len(known)} secrets)"
    forms = _forms(known)
    for form in forms:
        if form in text:
            text = text.replace(form, MASK)
    for form in forms:
        text = _without_beginning(text, form)
    return _without_rests(text, forms)


@lru_cache(maxsize=256)
def _forms(secrets: frozenset[str]) -> tuple[str, ...]:
    """Return every form of some secrets that a text may hold, the longest first."""
    forms = {form for secret in secrets for form in _forms_of(secret)}
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _forms_of(secret: str) -> Iterator[str]:
    # Who logs a text of several lines may indent each of them.
    lines = secret.splitlines()
    for text in {secret, secret.strip(), *(line for line in lines if len(line) >= _SURE_CHARACTERS)}:
        for form in _quoted(text):
            if len(form) >= MIN_SECRET_CHARACTERS:
                yield form


def _quoted(text: str) -> set[str]:
    """Return a text, and what the usual ways to quote it make of it."""
    escaped = "".join(character if character in "'\"" else repr(character)[1:-1] for character in text)
    once = {
        text,
        escaped,
        escaped.replace("'", "\\'"),
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        text.replace("'", "'\"'\"'"),
    }
    twice = {repr(form)[1:-1] for form in once} | {json.dumps(form)[1:-1] for form in once}
    addresses = {
        quote(text, safe="", errors="replace"),
        quote(text, errors="replace"),
        quote_plus(text, errors="replace"),
    }
    return once | twice | addresses | {html.escape(text), html.escape(text, quote=False)}


def _without_beginning(text: str, form: str) -> str:
    """Return a text with each place masked where much of a form begins and then breaks off."""
    if len(form) <= _SURE_CHARACTERS or (start := text.find(form[:_SURE_CHARACTERS])) < 0:
        return text
    parts: list[str] = []
    end = 0
    while start >= 0:
        parts += [text[end:start], MASK]
        end = start + _same(text[start:], form)
        start = text.find(form[:_SURE_CHARACTERS], end)
    return "".join([*parts, text[end:]])


def _same(text: str, form: str) -> int:
    """Return how many characters two texts begin with alike."""
    most = min(len(text), len(form))
    return next((index for index in range(most) if text[index] != form[index]), most)


def _without_rests(text: str, forms: Iterable[str]) -> str:
    """Return a text with what is left of a form masked, before and after each place where it was cut."""
    parts: list[str] = []
    end = 0
    for cut in _CUT.finditer(text):
        before = text[end : cut.start()]
        if parts and (rest := max((_rest_after(before, form) for form in forms), default=0)):
            before = MASK + before[rest:]
        least = _LEAST_CUT_CHARACTERS if cut[0] else _LEAST_CHARACTERS_AT_END
        if rest := max((_rest_before(before, form, least) for form in forms), default=0):
            before = before[:-rest] + MASK
        parts += [before, cut[0]]
        end = cut.end()
    return "".join([*parts, text[end:]])


def _rest_before(text: str, form: str, least: int) -> int:
    """Return how many of a form's first characters stand at the end of a text, if they are enough."""
    most = min(len(form), len(text), _LONGEST_REST_CHARACTERS)
    tail = text[-most:] if most else ""
    for length in range(most, least - 1, -1):
        if tail[-length] == form[0] and tail.endswith(form[:length]):
            return length
    return 0


def _rest_after(text: str, form: str) -> int:
    """Return how many of a form's last characters stand at the beginning of a text, if they are enough."""
    most = min(len(form), len(text), _LONGEST_REST_CHARACTERS)
    head = text[:most]
    for length in range(most, MIN_SECRET_CHARACTERS - 1, -1):
        if head[length - 1] == form[-1] and head.startswith(form[-length:]):
            return length
    return 0
