"""The program that is put in front of a container's command, where something has to be made ready for it.

Two things ask for it: a key that is kept in Secret Manager, and the code of a W&B job that runs on a
base image. What is done inside of the container is in `container/start.py`.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, shown
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.job_source import CODE_VARIABLE

API_KEY_VARIABLE: Final = "WANDB_API_KEY"
SECRET_VARIABLE: Final = "WANDB_API_KEY_SECRET"  # noqa: S105 - a name
_SECRET_VERSION: Final = re.compile(
    r"projects/[a-z0-9:.-]+/(locations/[a-z0-9-]+/)?secrets/[A-Za-z0-9_-]{1,255}/versions/[A-Za-z0-9_-]+"
)
_NOT_CALLABLE: Final = "the program that makes it ready runs first and has to call the container's command"


@cache
def start_program() -> str:
    """Return the text of the program that runs in the container; it is part of this package."""
    return (
        importlib.resources.files("prefect_vertex_launch.container").joinpath("start.py").read_text("utf-8")
    )


def put_in_front(
    job: CustomJob,
    pools: Collection[int],
    context: LaunchContext,
    *,
    path_of: Callable[[str, str], str],
    findings: Findings,
) -> None:
    """Put the program in front of the commands of a finished job, if the launch needs it.

    Args:
        job: The job; its containers are changed.
        pools: The indices of the worker pools that run the launch.
        context: The launch.
        path_of: Returns where an argument was written, by its section and name.
        findings: Takes what makes it impossible, and what the launch loses by it.
    """
    if context.api_key_secret is None and context.code is None:
        return
    pools_path = path_of("spec", "worker_pool_specs")
    _check_secret(context, findings)
    if context.code is not None and not pools:
        findings.refuse(
            pools_path,
            "no worker pool runs the base image of the W&B job",
            "its code would run nowhere",
            "Write image_uri: ${image_uri} where it should run.",
        )
    what = "the code of the W&B job" if context.code is not None else "a key from Secret Manager"
    specs: Any = job.job_spec.worker_pool_specs
    for index in pools:
        _start(specs[index], at(pools_path, index), what, context, findings)


def _check_secret(context: LaunchContext, findings: Findings) -> None:
    secret = context.api_key_secret
    if secret is None:
        return
    if not _SECRET_VERSION.fullmatch(secret):
        findings.refuse(
            "block.api_key_secret",
            f"{shown(secret)} is not a version of a secret",
            "it is read by its full name inside of the job",
            "Write projects/my-project/secrets/wandb-api-key/versions/latest, say.",
        )
    if context.api_key_of_author:
        findings.warn(
            "_wandb_api_key",
            "is not used: the queue's jobs read their key from Secret Manager, and the run belongs to it",
        )


def _start(pool: Any, where: str, what: str, context: LaunchContext, findings: Findings) -> None:
    if pool.python_package_spec.executor_image_uri:
        findings.refuse(
            at(where, "python_package_spec"),
            f"cannot be given {what}",
            "Vertex AI itself starts a Python package, and nothing can be put in front of it",
            "Use a container_spec with a command.",
        )
        return
    container, path = pool.container_spec, at(where, "container_spec")
    if not container.command:
        findings.refuse(
            at(path, "command"),
            f"missing, so that it cannot be given {what}",
            f"{_NOT_CALLABLE}, and an image's own entry point is not known here",
            "Set it, or launch with an entry point.",
        )
        return
    _drop_variables_of_its_own(container, path, context, findings)
    # Isolated, so that nothing in the image's directories or variables takes the place of a module.
    container.command = ["python3", "-I", "-c", start_program(), *container.command]


def _drop_variables_of_its_own(
    container: Any, where: str, context: LaunchContext, findings: Findings
) -> None:
    """Remove what only the launch may ask for, where it does not."""
    dropped: set[str] = set()
    dropped.add(API_KEY_VARIABLE if context.api_key_secret is not None else SECRET_VARIABLE)
    if context.code is None:
        dropped.add(CODE_VARIABLE)
    for variable in container.env:
        if variable.name in dropped:
            findings.warn(at(where, "env"), f"{variable.name} is left out: only the launch itself sets it")
    container.env = [variable for variable in container.env if variable.name not in dropped]
