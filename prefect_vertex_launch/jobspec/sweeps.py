"""Sweeps on a Vertex queue: their schedulers as small jobs of their own, their trials as any other run.

W&B's own agent runs a scheduler as a process on its own host. Here nothing of an item is ever run on
this host: a scheduler becomes a CustomJob with one CPU machine, which lives for as long as its sweep
hands out trials. The trials that it queues are launched like any other item, as long as W&B would
launch them.
"""

from __future__ import annotations

from typing import Any, Final

from prefect_vertex_launch.core.errors import InvalidRunSpec, Problem
from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import is_object, shown
from prefect_vertex_launch.jobspec.config.argument_layers import ArgumentLayers
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults
from prefect_vertex_launch.jobspec.run_spec import RunSpec

# What says where a job runs and as whom, rather than on which machines and for how long.
_KEPT: Final = frozenset({
    "project", "location", "labels", "encryption_spec_key_name", "staging_bucket", "service_account",
    "network", "psc_interface_config", "reserved_ip_ranges",
})  # fmt: skip
_SECTIONS: Final = ("spec", "run")
_MAY_BE_LAUNCHED: Final = frozenset({"RUNNING", "PAUSED"})


def scheduler_image(spec: RunSpec, block_image: str | None) -> str:
    """Return the image of a scheduler that has no job: its own, or the block's `scheduler_image`.

    Raises InvalidRunSpec where there is neither.
    """
    image = spec.image_uri or block_image
    if image:
        return image
    raise InvalidRunSpec(
        Problem(
            where="uri",
            what=f"this is the scheduler of sweep {spec.scheduled_sweep}, and it has no image to run in",
            why="a scheduler is a program of its own, and nothing of an item is ever run on this host",
            fix="Set Sweep scheduler image in the queue's block to an image with wandb in it, or "
            f"scheduler.docker_image in the sweep's configuration; or run `wandb scheduler "
            f"{spec.scheduled_sweep}` yourself where it may run for as long as the sweep does.",
        )
    )


def scheduler_resource_args(
    spec: RunSpec, defaults: QueueDefaults, *, machine_type: str = "e2-standard-4"
) -> dict[str, Any]:
    """Return the resource args with which a scheduler runs on Vertex AI; the block's are in them already.

    One pool with one replica of `machine_type` runs `${image_uri}` with the item's own command. Of the
    block's arguments, and over them the item's own, remain project and region, staging bucket, labels,
    encryption key, service account and networking. Pools, accelerators, scheduling, timeout,
    persistent resource, TensorBoard, experiment and fallbacks are meant for training and are left out.
    Not checked: `parse_queue_config` does that, without defaults.
    """
    # What is wrong with the training's arguments is told when a trial is launched with them.
    layers, ignored = ArgumentLayers(), Findings()
    layers.lay(_kept({"spec": dict(defaults.spec), "run": dict(defaults.run)}), "block", ignored)
    layers.lay(_kept(spec.resource_args), "resource_args", ignored)
    kept = {section: dict(layers.given[section]) for section in _SECTIONS}
    if not kept["spec"].get("staging_bucket") and defaults.staging_bucket:
        kept["spec"]["staging_bucket"] = defaults.staging_bucket
    container: dict[str, Any] = {"image_uri": "${image_uri}"}
    if spec.overrides.entry_point:
        container["command"] = list(spec.overrides.entry_point)
    if spec.overrides.args:
        container["args"] = list(spec.overrides.args)
    kept["spec"]["worker_pool_specs"] = [
        {
            "machine_spec": {"machine_type": machine_type},
            "replica_count": 1,
            "container_spec": container,
        }
    ]
    return kept


def _kept(arguments: object) -> dict[str, dict[str, Any]]:
    """Return the arguments that a scheduler keeps, by section; nothing for what has another shape."""
    sections = arguments if is_object(arguments) else {}
    return {
        section: {name: value for name, value in values.items() if name in _KEPT}
        for section in _SECTIONS
        if is_object(values := sections.get(section))
    }


def check_sweep_state(state: str | None, sweep_id: str) -> None:
    """Raise InvalidRunSpec for a trial of a sweep that W&B would not launch any more.

    `state` is the sweep's at W&B, None if there is no such sweep. As for W&B's own agent
    (`LaunchAgent.check_sweep_state`), a sweep that is RUNNING or PAUSED goes on.
    """
    if state is None:
        raise InvalidRunSpec(
            Problem(
                where="sweep_id",
                what=f"there is no sweep {shown(sweep_id)[1:-1]} in the run's project",
                why="or the API key cannot see it",
                fix="Start the sweep again, or push the run without sweep_id.",
            )
        )
    if state not in _MAY_BE_LAUNCHED:
        raise InvalidRunSpec(
            Problem(
                where="sweep_id",
                what=f"sweep {shown(sweep_id)[1:-1]} is {shown(state)[1:-1]}",
                why="trials are launched while their sweep is RUNNING or PAUSED",
                fix="Resume the sweep with `wandb launch-sweep --resume_id`, "
                "or push the run without sweep_id.",
            )
        )
