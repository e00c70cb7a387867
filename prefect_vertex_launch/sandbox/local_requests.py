"""Requests that a web page may have sent: refused on every HTTP port of the sandbox.

A page in the browser of whoever runs the sandbox can send requests to this machine's ports. A page of
another origin says so in `Origin` or `Sec-Fetch-Site`. A page whose own name was pointed at this machine
(DNS rebinding) is of the same origin for its browser, but has that name in `Host`. No client of W&B's or
Google's sends the first two, and all of them ask for the address that they were given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_THIS_MACHINE: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.ASCII | re.IGNORECASE)
# Of a navigation by the person, an address that is typed say, it is none.
_NO_PAGE: Final = "none"


def local_app(app: ASGIApp) -> ASGIApp:
    """Return an ASGI app that answers as `app` does, and refuses what a web page may have sent with 403."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        problem = _problem(scope["headers"])
        if problem is None:
            await app(scope, receive, send)
        else:
            body = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": problem}}
            await JSONResponse(body, 403)(scope, receive, send)

    return answer


def _problem(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    if not _THIS_MACHINE.fullmatch(texts.get("host", "")):
        return "The sandbox answers requests for localhost only."
    if "origin" in texts or texts.get("sec-fetch-site", _NO_PAGE) != _NO_PAGE:
        return "The sandbox answers no web page."
    return None
