"""What asking Prefect's server may fail with: it does not answer, or what was asked for was deleted."""

from __future__ import annotations

import httpx
from prefect.exceptions import ObjectNotFound

PREFECT_FAILURES = (httpx.HTTPError, ObjectNotFound)
