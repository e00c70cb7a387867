"""The client of Prefect's API: that of the engine which runs our flows, made to doubt what it is answered."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx
from prefect.client.orchestration import PrefectClient, get_client


@contextlib.asynccontextmanager
async def prefect_client() -> AsyncIterator[PrefectClient]:
    """Yield a client; inside of a flow run it is the one that Prefect's engine uses, too.

    An answer that a proxy gives in the server's place, a page with the status 200 say, counts as none: the
    client asks again, as it does after a broken connection.
    """
    async with get_client() as client:
        hooks = client._client.event_hooks  # noqa: SLF001 - it has no public name
        if _refuse_pages not in hooks["response"]:
            hooks["response"].append(_refuse_pages)
        yield client


async def _refuse_pages(response: httpx.Response) -> None:
    """Raise RemoteProtocolError for an answer that is a page and no JSON."""
    if response.is_success and (await response.aread()).lstrip()[:1] == b"<":
        raise httpx.RemoteProtocolError("Prefect's server answered with a page", request=response.request)
