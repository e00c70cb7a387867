"""A secret is masked in a text whoever has quoted it there, and wherever it was cut."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_vertex_launch.core.errors import InvalidRunSpec, Problem, Transient
from prefect_vertex_launch.core.secrets import MASK, MAX_SECRETS, Secrets, mask

# What is left of a secret may be so long: it says nothing.
HARMLESS_CHARACTERS = 8
SECRETS = [
    "hf_abcdefghijklmnopqrstuvwxyz0123456789" * 3,
    "it's a secret",
    'quo"ted and \\ more',
    "both ' and \" in it",
    "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\n-----END KEY-----\n",
    "pässwörd with ümlauts",
    "https://user:pass@example.com/a?b=c&d=<e>",
    "tab\tand\x1bescape",
]
WAYS: list[Callable[[str], str]] = [
    str,
    repr,
    json.dumps,
    shlex.quote,
    html.escape,
    lambda secret: quote(secret, safe=""),
    lambda secret: json.dumps(secret, ensure_ascii=False),
    lambda secret: repr(repr(secret)),
    lambda secret: repr(json.dumps({"value": secret})),
    lambda secret: repr(["x'", secret]),
    lambda secret: repr(f"{secret}' and \""),
    lambda secret: secret.replace("\n", "\n    "),
    lambda secret: f"'{secret[:47]}…",
    lambda secret: f"{secret[:20]!r}",
    lambda secret: f"{secret!r:.40}… is wrong",
    lambda secret: f"input_value='{secret[:25]}...{secret[-24:]}'",
]


def left_of(secret: str, text: str) -> list[str]:
    """The parts of a secret that can still be read in a text."""
    size = min(HARMLESS_CHARACTERS, len(secret))
    parts = (secret[start : start + size] for start in range(len(secret) - size + 1))
    return [part for part in parts if part in text]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_quote_or_cut_a_secret_shows_it(way: Callable[[str], str], secret: str):
    text = f"W&B refused it: {way(secret)}"
    masked = Secrets(secret).mask(text)
    assert left_of(secret, masked) == []
    assert masked.startswith("W&B refused it: ")
    assert MASK in masked


@given(st.text(min_size=6, max_size=80), st.sampled_from(WAYS[:8]))
def test_whatever_characters_a_secret_has_it_is_masked(secret: str, way: Callable[[str], str]):
    assert MASK in mask(way(secret), [secret]) or not secret.isprintable()
    assert secret not in mask(f"<{secret}>", [secret])


def test_a_text_without_secrets_stays_as_it_is():
    text = "spec.worker_pool_specs[0]: expected a list, got a string… Write a list"
    assert Secrets(*SECRETS).mask(text) == text
    assert Secrets("abc").mask("abc") == "abc"
    # Keys begin with the name of who made them.
    assert Secrets("sandbox_0123456789").mask("the queue's entity, sandbox") == "the queue's entity, sandbox"


def test_of_a_text_that_may_hold_one_of_very_many_secrets_nothing_is_shown():
    secrets = [f"secret number {number}" for number in range(MAX_SECRETS + 1)]
    assert "number 7" not in mask("this is secret number 7", secrets)


def test_secrets_do_not_show_themselves():
    secrets = Secrets("secret-value", beside=Secrets("another-secret"))
    assert "secret-value" not in repr(secrets)
    assert secrets.mask("secret-value another-secret") == f"{MASK} {MASK}"


def test_an_error_without_its_secrets_is_of_the_same_kind_and_hides_the_errors_behind_it():
    secrets = Secrets("secret-value")
    error = InvalidRunSpec(Problem("args", "'secret-value' is wrong"))
    error.__cause__ = KeyError("secret-value")
    masked = error.masked(secrets.mask)
    assert isinstance(masked, InvalidRunSpec)
    assert str(masked) == f"args: '{MASK}' is wrong"
    assert masked.__cause__ is masked.__context__ is None
    transient = Transient("secret-value", retry_after_seconds=5.0).masked(secrets.mask)
    assert (str(transient), transient.retry_after_seconds) == (MASK, 5.0)
