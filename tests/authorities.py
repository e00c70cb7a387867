"""The one authority that clients in tests know: each reads all there are, though nobody speaks TLS."""

from __future__ import annotations

from pathlib import Path

_FILE = str(Path(__file__).with_name("no_authority.pem"))
ENVIRONMENT = {"SSL_CERT_FILE": _FILE, "PREFECT_API_SSL_CERT_FILE": _FILE}
