"""`vertex-launch deploy`: the flows of a queue as deployments on a work pool.

Their entry points are modules of the installed package: a worker needs the package, and no clone or folder.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from prefect_vertex_launch.cli.errors import NOT_READY, USAGE, CommandError
from prefect_vertex_launch.cli.prefect_yaml import deployments
from prefect_vertex_launch.coordination.prefect_api import open_prefect, require_block
from prefect_vertex_launch.core.spelling import right_spelling

DISTRIBUTION = "prefect-vertex-launch"


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """What is deployed, and where.

    `image` is the container image in which the pool runs flows, None for the pool's own. `every` is how often
    an agent is started, None for as often as in `prefect.yaml`; never, unless `is_scheduled`.
    """

    queue: str
    pool: str
    image: str | None = None
    every: timedelta | None = None
    is_scheduled: bool = True


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployment as it is now; `is_new` unless there was one of this name."""

    name: str
    description: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Deployment:
    """All that was deployed for a queue, and what is left to do, as lines."""

    deployed: list[Deployed]
    next_steps: list[str]

    def lines(self) -> list[str]:
        """Return what a person is told."""
        width = max(len(each.name) for each in self.deployed)
        return [
            *(
                f"{'created' if each.is_new else 'updated'}  {each.name.ljust(width)}  {each.description}"
                for each in self.deployed
            ),
            *self.next_steps,
        ]


async def deploy(options: DeployOptions) -> Deployment:
    """Create the deployments of a queue, or bring those that are there up to date.

    Raises LaunchError when Prefect does not answer or there is no such block, and CommandError when there is
    no such work pool, or an image is given and the pool takes none.
    """
    async with open_prefect() as client:
        await require_block(client, options.queue)
        pool = await _require_pool(client, options.pool)
        job_variables = _job_variables(pool, options.image)
        deployed = [
            await _deploy(client, entry, job_variables, options)
            for entry in deployments(options.queue, options.pool)
        ]
    return Deployment(deployed, _next_steps(pool, options))


async def _require_pool(client: PrefectClient, name: str) -> WorkPool:
    try:
        return await client.read_work_pool(name)
    except ObjectNotFound:
        pools = [pool.name for pool in await client.read_work_pools()]
    near = right_spelling(name, pools)
    guess = f"did you mean {near!r}? If not, make it" if near else "make it"
    raise CommandError(
        f"there is no work pool named {name!r}",
        f"{guess} with `prefect work-pool create {shlex.quote(name)} --type process`",
        code=NOT_READY,
    )


def _takes_image(pool: WorkPool) -> bool:
    return "image" in pool.base_job_template.get("variables", {}).get("properties", {})


def _job_variables(pool: WorkPool, image: str | None) -> dict[str, Any]:
    if image is None:
        return {}
    if not _takes_image(pool):
        raise CommandError(
            f"the work pool {pool.name!r} is of type {pool.type}, which runs flows without an image",
            f"leave --image out, and install {DISTRIBUTION} where its workers run",
            code=USAGE,
        )
    return {"image": image}


def _next_steps(pool: WorkPool, options: DeployOptions) -> list[str]:
    if pool.is_push_pool or pool.is_managed_pool:
        steps = [] if options.is_scheduled else [f"next: prefect deployment run agent/{options.queue}"]
    else:
        steps = [f"next: prefect worker start --pool {shlex.quote(pool.name)}"]
    if options.image is None and _takes_image(pool):
        steps.insert(0, f"note: the image of this work pool needs {DISTRIBUTION}; --image names another one")
    return steps


async def _deploy(
    client: PrefectClient, entry: dict[str, Any], job_variables: dict[str, Any], options: DeployOptions
) -> Deployed:
    flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
    name = f"{flow.name}/{entry['name']}"
    is_new = await _is_missing(client, name)
    # It updates what is there, and puts these schedules in the place of those there were.
    await client.create_deployment(
        flow_id=await client.create_flow(flow),
        name=entry["name"],
        version=version(DISTRIBUTION),
        description=entry["description"],
        entrypoint=entry["entrypoint"],
        pull_steps=entry["pull"],
        parameters=entry["parameters"],
        parameter_openapi_schema=parameter_schema(flow).model_dump(exclude_unset=True),
        enforce_parameter_schema=True,
        tags=entry["tags"],
        work_pool_name=entry["work_pool"]["name"],
        job_variables=job_variables,
        schedules=_schedules(entry, options),
    )
    return Deployed(name, entry["description"], is_new)


async def _is_missing(client: PrefectClient, name: str) -> bool:
    try:
        await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return True
    return False


def _schedules(entry: dict[str, Any], options: DeployOptions) -> list[DeploymentScheduleCreate]:
    if not options.is_scheduled:
        return []
    return [
        DeploymentScheduleCreate(
            schedule=IntervalSchedule(interval=options.every or timedelta(seconds=schedule["interval"])),
            active=schedule["active"],
            slug=schedule["slug"],
        )
        for schedule in entry.get("schedules", ())
    ]
