"""Reading from Prefect's server: its flow runs, its blocks, and whether it answers at all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from functools import cache
from logging import LoggerAdapter
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.core.errors import LaunchError, NotFound, Permanent, Problem, Transient
from prefect_vertex_launch.core.secrets import own_secrets
from prefect_vertex_launch.core.spelling import right_spelling
from prefect_vertex_launch.core.unforeseen import unforeseen

# What a request may fail with: the server does not answer, or what was asked for was deleted.
PREFECT_FAILURES = (httpx.HTTPError, ObjectNotFound)
# The names of the flows, by which their runs are found.
AGENT_FLOW, LAUNCH_FLOW = "agent", "launch"
# Prefect's own limit for one answer.
_PAGE = 200


def expected_or_told(error: Exception, *, where: str, log: logging.Logger | LoggerAdapter[Any]) -> Exception:
    """Return an error that calls of W&B, Vertex AI and Prefect may fail with, and log any other one.

    Of such a one the caller gets what may be said of it.
    """
    if isinstance(error, (LaunchError, *PREFECT_FAILURES)):
        return error
    return unforeseen(error, where=where, log=log, mask=own_secrets.mask)


class PrefectUnreachable(Transient):
    """Prefect's server does not answer."""


class NoSuchBlock(NotFound):
    """There is no VertexLaunchQueue block of a name."""


class UnusableBlock(Permanent):
    """A VertexLaunchQueue block whose fields, or those of its credentials, are not valid any more."""


@contextlib.asynccontextmanager
async def open_prefect() -> AsyncIterator[PrefectClient]:
    """Yield a client of the configured Prefect API. Raises PrefectUnreachable when it does not answer."""
    try:
        async with get_client() as client:
            if error := await client.api_healthcheck():
                raise PrefectUnreachable(str(error) or type(error).__name__) from error
            yield client
    except RuntimeError as error:
        if isinstance(cause := error.__cause__, httpx.TransportError):
            raise PrefectUnreachable(str(cause) or type(cause).__name__) from error
        raise


async def read_flow_runs(
    client: PrefectClient,
    *,
    flow: str | None = None,
    tags: Sequence[str] = (),
    states: Sequence[StateType] = (),
    sort: FlowRunSort | None = None,
    most: int | None = None,
) -> list[FlowRun]:
    """Return the runs of a flow with all of these tags and in one of these states, page by page.

    Without `flow`, `tags` or `states` those do not matter; `most` bounds how many are returned. Raises
    httpx.HTTPError when Prefect cannot be reached.
    """
    found: list[FlowRun] = []
    while most is None or len(found) < most:
        asked = _PAGE if most is None else min(_PAGE, most - len(found))
        page = await client.read_flow_runs(
            flow_filter=None if flow is None else _runs_of_flow(flow),
            flow_run_filter=_selection(tuple(tags), tuple(states)),
            sort=sort,
            limit=asked,
            offset=len(found),
        )
        found += page
        if len(page) < asked:
            break
    return found


async def read_flow_runs_by_id(client: PrefectClient, ids: Collection[UUID]) -> list[FlowRun]:
    """Return the flow runs with these ids, as far as they exist. Raises httpx.HTTPError as above."""
    ordered = sorted(ids, key=str)
    found: list[FlowRun] = []
    for start in range(0, len(ordered), _PAGE):
        selection = FlowRunFilter.model_validate({"id": {"any_": ordered[start : start + _PAGE]}})
        found += await client.read_flow_runs(flow_run_filter=selection, limit=_PAGE)
    return found


async def block_names(client: PrefectClient) -> list[str]:
    """Return the names of all VertexLaunchQueue blocks."""
    try:
        documents = await client.read_block_documents_by_type(
            VertexLaunchQueue.get_block_type_slug(), include_secrets=False
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        return []  # the block type itself is not registered yet
    return sorted(document.name for document in documents if document.name)


async def require_block(client: PrefectClient, name: str) -> None:
    """Raise NoSuchBlock, naming the blocks there are, unless this one exists."""
    existing = await block_names(client)
    if name not in existing:
        raise no_such_block(name, existing)


async def load_block(name: str) -> VertexLaunchQueue:
    """Return a block by its name.

    Raises NoSuchBlock, naming the blocks there are, and UnusableBlock, which shows no value of a credentials
    block: Prefect's own error quotes the keys.
    """
    try:
        return await VertexLaunchQueue.aload(name)
    except (ValueError, RuntimeError) as error:
        behind = error if isinstance(error, ValidationError) else error.__cause__
        if not isinstance(behind, ValidationError | ObjectNotFound):
            raise
    # Out here, so that the error that quotes the keys is not behind ours.
    if isinstance(behind, ValidationError):
        raise UnusableBlock(_invalid_fields(name, behind))
    async with get_client() as client:
        raise no_such_block(name, await block_names(client))


def _invalid_fields(name: str, error: ValidationError) -> Iterator[Problem]:
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        path = [str(step) for step in each["loc"]]
        is_secret = bool(path) and path[0] in {"wandb_credentials", "gcp_credentials"}
        yield Problem(
            f"block {name}" + (f": {'.'.join(path)}" if path else ""),
            f"is not valid ({each['type']})" if is_secret else each["msg"],
            fix="Open the block in the Prefect UI and correct it.",
        )


def no_such_block(name: str, existing: Sequence[str]) -> NoSuchBlock:
    """Return the error for a block that is not there, with the ones that are."""
    what = f"there is no VertexLaunchQueue block named {name!r}"
    if not existing:
        fix = (
            "None exists yet: register the block types with "
            "`prefect block register -m prefect_vertex_launch.blocks`, "
            "then create one in the Prefect UI or in Python (docs/deploying.md)"
        )
    else:
        near = right_spelling(name, existing)
        there = f"there is: {', '.join(sorted(existing))}"
        fix = f"Did you mean {near!r}? {there}" if near else there
    return NoSuchBlock(Problem("queue", what, fix=fix))


@cache
def _runs_of_flow(name: str) -> FlowFilter:
    return FlowFilter.model_validate({"name": {"any_": [name]}})


@cache
def _selection(tags: tuple[str, ...], states: tuple[StateType, ...]) -> FlowRunFilter:
    wanted: dict[str, object] = {}
    if tags:
        wanted["tags"] = {"all_": tags}
    if states:
        wanted["state"] = {"type": {"any_": states}}
    return FlowRunFilter.model_validate(wanted)
