"""The status of one queue or of all of them."""

from __future__ import annotations

from prefect.client.orchestration import PrefectClient
from pydantic import ValidationError

from prefect_vertex_launch.cli.status.queue_reader import QueueStatus, open_queue
from prefect_vertex_launch.coordination.prefect_api import block_names, require_block
from prefect_vertex_launch.core.errors import LaunchError


async def read_status(
    client: PrefectClient, block_name: str | None = None, *, ended_limit: int = 20
) -> list[QueueStatus]:
    """Return the queue of this block, or of every block there is.

    `ended_limit` bounds the launches that have ended, for each queue. Raises NoSuchBlock when the
    block does not exist; a queue that cannot be read says so in its `problems`.
    """
    if block_name is not None:
        await require_block(client, block_name)
    names = [block_name] if block_name is not None else await block_names(client)
    return [await _read_queue(client, name, ended_limit) for name in names]


async def _read_queue(client: PrefectClient, name: str, ended_limit: int) -> QueueStatus:
    try:
        async with open_queue(client, name) as reader:
            return await reader.read(ended_limit=ended_limit)
    except (LaunchError, ValidationError) as error:
        return QueueStatus(name, "?", "?", "?", 0, None, 0, (), (f"block {name}: {error}",))
