"""The size of a queue's limit: the block's number until a person changes it, or changes the block.

Prefect does not say who has last changed a limit. So a variable keeps the number that was last taken from the
block, and only another number there is written.
"""

from __future__ import annotations

import hashlib

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound


async def ensure_size(client: PrefectClient, limit_name: str, size: int) -> None:
    """Create a limit of this size, or set it to that size if the block had another one before.

    Raises httpx.HTTPError when Prefect cannot be reached.
    """
    variable = f"vertex-launch-limit-{hashlib.sha256(limit_name.encode()).hexdigest()[:16]}"
    known = await client.read_variable_by_name(variable)
    if known is None or known.value != {"limit": limit_name, "size": size}:
        await _write(client, limit_name, size)
        # Dying before this line only has the same size written again.
        await _remember(client, variable, {"limit": limit_name, "size": size}, is_new=known is None)
        return
    try:
        await client.read_global_concurrency_limit_by_name(limit_name)
    except ObjectNotFound:
        await _write(client, limit_name, size)


async def _write(client: PrefectClient, limit_name: str, size: int) -> None:
    try:
        await client.upsert_global_concurrency_limit_by_name(limit_name, size)
    except ObjectAlreadyExists:
        # Another agent that starts at the same moment has made it.
        await client.upsert_global_concurrency_limit_by_name(limit_name, size)


async def _remember(client: PrefectClient, name: str, value: dict[str, object], *, is_new: bool) -> None:
    if is_new:
        try:
            await client.create_variable(VariableCreate(name=name, value=value))
        except ObjectAlreadyExists:
            pass
        else:
            return
    await client.update_variable(VariableUpdate(name=name, value=value))
