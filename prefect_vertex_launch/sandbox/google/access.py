"""Who may call Google's services of the sandbox: its service account, and whoever has one of its tokens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, Final, cast

from google.auth import jwt

from prefect_vertex_launch.sandbox.google.service_account import (
    private_key,
    public_key,
    service_account_info,
)
from prefect_vertex_launch.sandbox.records import Records

# What Google tells its clients: they renew a token within the hour.
TOKEN_SECONDS: Final = 3599
# What Google's clients sign for, wherever they send it.
_AUDIENCE: Final = "https://oauth2.googleapis.com/token"
_PREFIX: Final = "ya29.sandbox"


class GoogleAccess:
    """The key of the service account, and the access tokens; both stay what they are over a restart.

    A token is known by its signature, so none is kept. It does not end: clients renew theirs as Google
    tells them to.
    """

    def __init__(self, records: Records) -> None:
        self._key = records.secret("service-account-key", private_key)
        self._secret = records.secret("access-tokens", secrets.token_hex).encode()
        # Another user of this machine could ask the metadata server for a token, as any process of a real
        # machine can. Only the jobs know this part of its address.
        self.metadata_path = records.secret("metadata-path", secrets.token_hex)

    def service_account_info(self, project: str, token_uri: str) -> dict[str, str]:
        """Return the JSON of the service account's key; its tokens come from `token_uri`."""
        return service_account_info(project, self._key, token_uri)

    def new_token(self) -> str:
        """Return an access token."""
        name = f"{_PREFIX}.{secrets.token_hex(8)}"
        return f"{name}.{self._signature(name)}"

    def token_for(self, assertion: str) -> str:
        """Return an access token for what the service account has signed.

        Raises ValueError, which says what is wrong, if it has not signed this, or not now.
        """
        cast("Any", jwt).decode(assertion, certs=public_key(self._key), audience=_AUDIENCE)
        return self.new_token()

    def admits(self, authorization: str) -> bool:
        """Return whether the value of an Authorization header is `Bearer` and a token of this sandbox."""
        scheme, _, token = authorization.partition(" ")
        name, _, signature = token.rpartition(".")
        known = hmac.compare_digest(signature.encode(), self._signature(name).encode())
        return scheme.lower() == "bearer" and known

    def _signature(self, name: str) -> str:
        return hmac.new(self._secret, name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
