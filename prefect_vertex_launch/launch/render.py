"""What has to be known before an item can become a job: its run spec, configuration, image, permission."""

from __future__ import annotations

from prefect_vertex_launch.core.clock import until_any
from prefect_vertex_launch.core.errors import LaunchError
from prefect_vertex_launch.jobspec.config.queue_config import QueueConfig, parse_queue_config
from prefect_vertex_launch.jobspec.job_source import LaunchImage, image_of_job
from prefect_vertex_launch.jobspec.run_spec import RunSpec
from prefect_vertex_launch.jobspec.sweeps import check_sweep_state, scheduler_image, scheduler_resource_args
from prefect_vertex_launch.launch.item import QueueItem
from prefect_vertex_launch.launch.launch import LiveLaunch, Prepared
from prefect_vertex_launch.launch.notify import RUNNING, show
from prefect_vertex_launch.launch.queue_context import LaunchSession


async def prepare(session: LaunchSession, live: LiveLaunch) -> Prepared:
    """Return what the launch's job is made of, for all of its attempts.

    Raises InvalidRunSpec or InvalidQueueConfig with everything that is wrong.
    """
    item = live.item
    spec = item.require_spec()
    config, live.config = live.config or _parsed(session, spec), None
    live.locations = tuple(locations(session, config))
    live.plans = len(live.locations)
    live.prepared = Prepared(spec, config, await _image(session, live, spec))
    return live.prepared


async def may_start(session: LaunchSession, live: LiveLaunch) -> bool:
    """Whether a job may be created now: nobody wants the launch's end, and its sweep goes on.

    A launch that has lost its slot waits here for another one, and a sweep scheduler for its place under the
    limit for schedulers. Raises InvalidRunSpec
    for a trial of a sweep that has ended.
    """
    assert live.prepared is not None
    spec = live.prepared.spec
    if not session.has_slot(live):
        await show(session, live, "WaitingForSlot", "The queue runs as much at once as it may.")
        live.is_waiting_for_slot = True
        await until_any(live.slot.admits, live.stop_requested, live.leave)
        live.is_waiting_for_slot = False
        await show(session, live, RUNNING, "It has its place.")
    await session.until_sure(live)
    if live.stop_requested.is_set() or live.leave.is_set():
        return False
    if spec.sweep_id and not spec.is_scheduler and live.attempt.number == 1:
        state = await session.wandb.read_sweep_state(spec.entity, spec.project, spec.sweep_id)
        check_sweep_state(state, spec.sweep_id)
    return True


def configuration(session: LaunchSession, item: QueueItem) -> QueueConfig | None:
    """Return what the queue and an item say about the item's jobs; None if that is refused."""
    if item.spec is None:
        return None
    try:
        return _parsed(session, item.spec)
    except LaunchError:
        return None


def locations(session: LaunchSession, config: QueueConfig | None) -> list[str]:
    """Return the region of each plan: of the configuration as written, and of its fallbacks."""
    if config is None:
        return [session.block.location]
    plans = range(1 + len(config.launch.fallbacks))
    return [config.location_of(plan) or session.block.location for plan in plans]


def whereabouts(session: LaunchSession, config: QueueConfig | None) -> frozenset[str]:
    """Return where an item's jobs may be, if they are sent now: `projects/…/locations/…` each."""
    return session.regions.parents(locations(session, config))


def _parsed(session: LaunchSession, spec: RunSpec) -> QueueConfig:
    defaults = session.block.defaults()
    if not spec.is_scheduler:
        return parse_queue_config(
            spec.resource_args, defaults=defaults, where=f"resource_args.{spec.resource}"
        )
    return parse_queue_config(scheduler_resource_args(spec, defaults), where="the sweep scheduler's job")


async def _image(session: LaunchSession, live: LiveLaunch, spec: RunSpec) -> LaunchImage:
    """Return the image the run is to use, and what its W&B job brings along."""
    if spec.is_scheduler and spec.job is None:
        return LaunchImage(scheduler_image(spec, session.block.scheduler_image))
    if spec.image_uri is not None:
        return LaunchImage(spec.image_uri)
    assert spec.job is not None
    entity, project, name = spec.job.split("/", 2)
    source = await session.wandb.read_job(entity, project, name)
    return image_of_job(
        source,
        where=f"item {live.item.item_id}: job {spec.job}",
        working_dir=spec.overrides.working_dir,
    )
