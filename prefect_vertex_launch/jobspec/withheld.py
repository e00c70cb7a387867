"""A run spec as it may be kept where many people can read it: without what looks like a secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Final

from prefect_vertex_launch.core.json_value import at, is_list, is_object
from prefect_vertex_launch.core.secrets import MASK, MIN_SECRET_CHARACTERS, is_secret_name

_WORDS: Final = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_SECRET_WORDS: Final = frozenset(
    {"token", "secret", "password", "passwd", "apikey", "credential", "credentials"}
)
_SECRET_PAIRS: Final = frozenset({("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key")})
# Keys and tokens that say by their own form what they are: of Hugging Face, GitHub, GitLab, OpenAI and
# Anthropic, Slack, AWS, Google, a JSON Web Token, a PEM file, and the password in an address.
_KNOWN_FORMS: Final = re.compile(
    r"\bhf_[A-Za-z0-9]{20}|\bgh[opsur]_[A-Za-z0-9]{20}|\bgithub_pat_[A-Za-z0-9]{20}|\bglpat-[\w-]{16}"
    r"|\bsk-[\w-]{20}|\bxox[abprs]-[\w-]{10}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30}|\bya29\.[\w-]{20}"
    r"|\beyJ[\w-]{10,200}\.eyJ|-----BEGIN [A-Z ]{0,40}PRIVATE KEY|://[^\s/:@]{0,100}:[^\s/:@]{1,200}@"
)
# What stands for a value that is filled in elsewhere is no secret itself.
_REFERENCE: Final = re.compile(r"\$\{[^{}]{1,100}\}|\$\([^()]{1,100}\)")

# Of so many secrets that begin alike the beginning alone counts: each text is looked through only once.
_MANY: Final = 50


class Withheld:
    """A run spec without what looks like a secret: by its name, or by its own form.

    Attributes:
        payload: The run spec, with `********` in the place of each text that was left out.
        paths: Where these texts stood.
        secrets: The texts themselves.
    """

    def __init__(self, payload: Any) -> None:
        """`payload` is JSON of bounded depth, as `json_problems` accepts it."""
        self.paths: list[str] = []
        self.secrets: set[str] = set()
        kept = self._kept(payload, "")
        self._beginnings = _by_beginning(self.secrets)
        self.payload = self._without_copies(kept, "") if self.secrets else kept

    def _without_copies(self, value: Any, path: str) -> Any:
        """Return a value without what holds a secret that was found elsewhere, by its name."""
        if isinstance(value, str):
            if not self._holds_secret(value):
                return value
            self.paths.append(path)
            self.secrets.add(value)
            return MASK
        if is_object(value):
            return {key: self._without_copies(member, at(path, key)) for key, member in value.items()}
        if is_list(value):
            return [self._without_copies(member, at(path, index)) for index, member in enumerate(value)]
        return value

    def _holds_secret(self, text: str) -> bool:
        for start in range(len(text) - MIN_SECRET_CHARACTERS + 1):
            secrets = self._beginnings.get(text[start : start + MIN_SECRET_CHARACTERS])
            if secrets and (len(secrets) > _MANY or any(text.startswith(each, start) for each in secrets)):
                return True
        return False

    def _kept(self, value: Any, path: str, *, is_secret: bool = False) -> Any:
        if isinstance(value, str):
            return self._text(value, path, is_secret=is_secret)
        if is_object(value):
            is_variable = isinstance(name := value.get("name"), str) and is_secret_name(name)
            return {
                key: self._kept(
                    member, at(path, key), is_secret=(is_variable and key == "value") or _is_secret_key(key)
                )
                for key, member in value.items()
            }
        if is_list(value):
            return [
                self._kept(member, at(path, index), is_secret=is_value)
                for index, (member, is_value) in enumerate(zip(value, _after_flags(value), strict=True))
            ]
        return value

    def _text(self, text: str, path: str, *, is_secret: bool) -> str:
        if len(text) < MIN_SECRET_CHARACTERS or _REFERENCE.fullmatch(text):
            return text
        if not is_secret and not _KNOWN_FORMS.search(text):
            return text
        self.paths.append(path)
        self.secrets.add(text)
        return MASK


def _by_beginning(secrets: Iterable[str]) -> dict[str, list[str]]:
    beginnings: dict[str, list[str]] = {}
    for secret in secrets:
        beginnings.setdefault(secret[:MIN_SECRET_CHARACTERS], []).append(secret)
    return beginnings


def _is_secret_key(name: str) -> bool:
    words = [word.lower() for word in _WORDS.split(name) if word]
    return any(word in _SECRET_WORDS for word in words) or any(
        pair in _SECRET_PAIRS for pair in pairwise(words)
    )


def _after_flags(values: list[Any]) -> Iterator[bool]:
    """Yield for each member whether it is the value of an option such as `--api-key`, or has one in it."""
    is_value = False
    for value in values:
        is_option = isinstance(value, str) and value.startswith("-") and len(value) <= 10_000
        name, has_value, _ = value.partition("=") if is_option else ("", "", "")
        is_secret = is_option and _is_secret_key(name[:200])
        yield is_value or (is_secret and bool(has_value))
        is_value = is_secret and not has_value
