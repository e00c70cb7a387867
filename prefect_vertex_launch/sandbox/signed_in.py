"""HTTP servers of the sandbox that answer only those who are known by their Authorization header."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


def signed_in_app(app: ASGIApp, refusal: Callable[[str], Response | None]) -> ASGIApp:
    """Return an ASGI app that answers as `app` does; `refusal` tells who is not answered, and how.

    It is given the value of the Authorization header, empty where there is none.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        refused = refusal(request.headers.get("authorization", ""))
        if refused is None:
            await app(scope, receive, send)
            return
        # An answer before the end of a long body would reach its client as a broken connection.
        async for _ in request.stream():
            pass
        await refused(scope, receive, send)

    return answer
