"""A queue's block, read again while it is served: a new key, limit or lock takes effect without a restart."""

from __future__ import annotations

from prefect.blocks.core import Block

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.coordination.prefect_api import expected_or_told, load_block
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import sleep_until
from prefect_vertex_launch.core.secrets import own_secrets
from prefect_vertex_launch.launch.queue_context import QueueContext

logger = clean_log("prefect.vertex-launch.agent")

INTERVAL_SECONDS = 300.0
# After a key was not accepted the block is read again at once, but no more often than this.
AFTER_REFUSAL_SECONDS = 15.0

# Which queue it is and where its jobs are: another one is not served by changing the block.
_FIXED = frozenset({"entity", "queue", "project", "endpoint"})
# What the clients and loops of a queue are made with.
_AT_START = frozenset(
    {
        "poll_seconds", "watch_seconds", "shared_limits", "calls_per_minute", "submissions_per_minute",
        "call_timeout_seconds", "create_timeout_seconds",
    }
)  # fmt: skip


async def keep_reading(context: QueueContext) -> None:
    """Read the queue's block now and then, and after each refusal of its keys, for ever."""
    while True:
        await sleep_until(context.block_wanted, INTERVAL_SECONDS, context.clock)
        context.block_wanted.clear()
        try:
            await read_again(context)
        except Exception as error:  # noqa: BLE001 - the queue is served as it was, and the block read later
            told = expected_or_told(error, where=f"block {context.block_name}", log=logger)
            logger.warning("Block %s could not be read again: %s", context.block_name, told)
        await context.clock.sleep(AFTER_REFUSAL_SECONDS)


async def read_again(context: QueueContext) -> None:
    """Read the queue's block, and let what has changed take effect. Raises what `load_block` raises."""
    fresh = await load_block(context.block_name)
    old, name = context.block, context.block_name
    before, after = _values(old), _values(fresh)
    changed = {field for field in after if after[field] != before[field]}
    if fresh.identity != old.identity or changed & _FIXED:
        logger.error(
            "Block %s is of another queue, project or server now. This agent goes on with the one before; "
            "start it again to serve the new one.", name,
        )  # fmt: skip
        return
    if not changed:
        return
    own_secrets.add(*fresh.secrets())
    context.block = fresh
    if "wandb_credentials" in changed:
        context.wandb.use(fresh.wandb_credentials.endpoint())
    await context.regions.use(fresh, has_new_key="gcp_credentials" in changed)
    if context.on_new_block is not None:
        await context.on_new_block(fresh)
    logger.info("Block %s was changed: %s", name, _said(changed))


def _values(block: VertexLaunchQueue) -> dict[str, object]:
    """Return the fields of a block; those of its credentials without what they have found out since."""
    values: dict[str, object] = {name: getattr(block, name) for name in VertexLaunchQueue.model_fields}
    return {name: value.model_dump() if isinstance(value, Block) else value for name, value in values.items()}


def _said(changed: set[str]) -> str:
    """Name the fields, without their values, and when they take effect."""
    now, later = sorted(changed - _AT_START), sorted(changed & _AT_START)
    parts = [f"{', '.join(now)} (from now on)"] if now else []
    parts += [f"{', '.join(later)} (when the agent starts again)"] if later else []
    return "; ".join(parts)
