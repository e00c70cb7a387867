"""How W&B's clients show their API key: as the password of HTTP's Basic login, or as a Bearer token."""

from __future__ import annotations

import base64
import secrets
from typing import Final

NOT_LOGGED_IN: Final = "user is not logged in"
_BAD_KEY: Final = "invalid API key: permission denied"


def login_problem(authorization: str, api_key: str) -> str | None:
    """Return what is wrong with the value of an Authorization header, None if it shows the key."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode().partition(":")[2]
        except ValueError:  # not ASCII, not base64, not UTF-8
            return NOT_LOGGED_IN
    if not key:
        return NOT_LOGGED_IN
    return None if secrets.compare_digest(key.encode(), api_key.encode()) else _BAD_KEY
