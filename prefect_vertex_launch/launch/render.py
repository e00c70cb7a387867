"""The step `render`: run spec and queue configuration become a CustomJob."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect_vertex_launch.core.child_process import CHILD_SECONDS, ChildEnded, run_in_child
from prefect_vertex_launch.core.errors import AuthenticationFailed, InvalidRunSpec, Permanent, Problem
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig, parse_queue_config
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.entities import foreign_entities
from prefect_vertex_launch.jobspec.job_source import LaunchImage, image_of_job
from prefect_vertex_launch.jobspec.render import Rendering
from prefect_vertex_launch.jobspec.render import render as render_job
from prefect_vertex_launch.jobspec.run_spec import RunSpec
from prefect_vertex_launch.jobspec.sweeps import scheduler_image, scheduler_resource_args
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import Launch, Prepared
from prefect_vertex_launch.launch.notify import warn
from prefect_vertex_launch.launch.queue_context import QueueContext

T = TypeVar("T")
P = ParamSpec("P")


async def render(launch: Launch) -> dict[str, Any]:
    """Make the CustomJob of the launch's current attempt; return it without its secrets.

    Returns nothing for a launch that has its job. Raises InvalidQueueConfig or InvalidRunSpec with everything
    that is wrong, before any request to Vertex AI.
    """
    if launch.item.job_name is not None or launch.job is not None:
        return {}
    prepared = await _prepare(launch)
    rendering = await rendering_of(launch)
    launch.secrets.add(*rendering.secrets)
    if warnings := (*prepared.config.warnings, *rendering.warnings):
        await warn(launch, "\n".join(warnings))
    return rendering.redacted(launch.secrets.values)


async def rendering_of(launch: Launch) -> Rendering:
    """Return the job of the launch's current attempt, always the same one.

    Raises InvalidQueueConfig with everything that is wrong, InvalidRunSpec when the item takes too long.
    """
    assert launch.prepared is not None
    renderings = launch.prepared.renderings
    if launch.attempt not in renderings:
        renderings[launch.attempt] = await _rendered(launch, launch.prepared)
    return renderings[launch.attempt]


async def configuration(context: QueueContext, item: QueueItem) -> QueueConfig | None:
    """Return what the queue and an item say about the item's jobs; None if that is refused."""
    if item.spec is None:
        return None
    try:
        return await _parsed(context, item, item.spec)
    except Exception:  # noqa: BLE001 - the step that renders the job says what is wrong
        return None


def locations(context: QueueContext, config: QueueConfig | None) -> list[str]:
    """Return the region of each plan: of the configuration as written, and of its fallbacks."""
    if config is None:
        return [context.block.location]
    plans = range(1 + len(config.launch.fallbacks))
    return [config.location_of(plan) or context.block.location for plan in plans]


def job_parents(context: QueueContext, config: QueueConfig | None) -> frozenset[str]:
    """Return where an item's jobs may be, if they are sent now: `projects/…/locations/…` each."""
    return context.regions.parents(locations(context, config))


async def _prepare(launch: Launch) -> Prepared:
    """Return what the launch's job is made of, for all of its attempts."""
    if launch.item.withheld:
        await _complete(launch)
    await _check_entities(launch)
    spec = launch.item.require_spec()
    config, launch.config = launch.config or await _parsed(launch.context, launch.item, spec), None
    launch.locations = tuple(locations(launch.context, config))
    launch.plans = len(launch.locations)
    launch.prepared = Prepared(spec, config, await _image(launch, spec))
    return launch.prepared


async def _check_entities(launch: Launch) -> None:
    """Raise InvalidRunSpec for an item that would be acted for at another entity with the block's key."""
    if _foreign(launch) and launch.api_key is None and launch.may_have_job:
        await _complete(launch)  # Prefect does not keep the author's key
    if problems := _foreign(launch):
        raise InvalidRunSpec(problems)


def _foreign(launch: Launch) -> list[Problem]:
    block = launch.context.block
    has_key = launch.api_key is not None and block.api_key_secret is None
    spec = launch.item.require_spec()
    return [*foreign_entities(spec, block.entity, block.allowed_entities, has_key=has_key)]


async def _complete(launch: Launch) -> None:
    """Get what Prefect does not keep of the item from W&B.

    Raises InvalidRunSpec if W&B does not give it again.
    """
    item_id = launch.item.item_id
    try:
        popped = await launch.context.wandb.read_run_spec(item_id)
    except AuthenticationFailed:
        raise
    except Permanent as error:
        raise InvalidRunSpec(
            Problem(
                f"item {item_id}",
                f"W&B does not give its run spec again: {error}",
                why="what looks like a secret in it is not kept in Prefect, and a new job needs it",
                fix="Push the run again.",
            )
        ) from error
    launch.complete(QueueItem.from_popped(popped), popped.api_key)


async def _rendered(launch: Launch, prepared: Prepared) -> Rendering:
    block, spec = launch.context.block, prepared.spec
    assert launch.run is not None
    endpoint = block.wandb_credentials.endpoint()
    return await _bounded(
        launch.item,
        render_job,
        spec,
        prepared.config.plan(launch.attempt.plan),
        LaunchContext(
            item_id=launch.item.item_id,
            queue=block.identity,
            run_id=launch.run.run_id,
            image_uri=prepared.image.image_uri,
            base_url=endpoint.base_url,
            api_key=launch.api_key or endpoint.api_key,
            project=block.project,
            location=launch.locations[launch.attempt.plan],
            attempt=launch.attempt.number,
            macros=block.macros(),
            job_entry_point=prepared.image.entry_point,
            api_key_of_author=launch.api_key is not None,
            api_key_secret=block.api_key_secret,
            code=prepared.image.code,
            locks=block.scheduler_locks() if spec.is_scheduler else block.locks(),
            block_defaults=block.defaults(),
        ),
    )


async def _parsed(context: QueueContext, item: QueueItem, spec: RunSpec) -> QueueConfig:
    defaults = context.block.defaults()
    if not spec.is_scheduler:
        where = f"resource_args.{spec.resource}"
        return await _bounded(item, parse_queue_config, spec.resource_args, defaults=defaults, where=where)
    arguments, where = scheduler_resource_args(spec, defaults), "the sweep scheduler's job"
    return await _bounded(item, parse_queue_config, arguments, where=where)


async def _bounded(item: QueueItem, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Return what `function` makes of an item, of a large one in a child process.

    Raises InvalidRunSpec when it is not done within half a minute, so that no item holds up another one.
    """
    if not item.is_large:
        return function(*args, **named)
    try:
        return await run_in_child(function, CHILD_SECONDS, *args, **named)
    except ChildEnded as error:
        raise InvalidRunSpec(
            Problem(
                f"item {item.item_id}",
                f"cannot be made into a job: {error}",
                "an item may not hold up the others, and the largest one takes about a second",
                "Make it smaller: put large inputs into a W&B artifact or a bucket and pass their names.",
            )
        ) from error


async def _image(launch: Launch, spec: RunSpec) -> LaunchImage:
    """Return the image the run is to use, and what its W&B job brings along."""
    if spec.is_scheduler and spec.job is None:
        return LaunchImage(scheduler_image(spec, launch.context.block.scheduler_image))
    if spec.image_uri is not None:
        return LaunchImage(spec.image_uri)
    assert spec.job is not None
    entity, project, name = spec.job.split("/", 2)
    source = await launch.context.wandb.read_job(entity, project, name)
    return image_of_job(
        source,
        where=f"item {launch.item.item_id}: job {spec.job}",
        working_dir=spec.overrides.working_dir,
    )
