"""The deployments of a queue, as a `prefect.yaml` that comes with the package.

`vertex-launch init` writes it into a project, and `vertex-launch deploy` deploys what it says.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import yaml

NAME = "prefect.yaml"
_VARIABLE = re.compile(r"\{\{ \$(\w+) \}\}")


def read_prefect_yaml() -> str:
    """Return the text of the file."""
    return resources.files("prefect_vertex_launch.cli").joinpath(NAME).read_text("utf-8")


def deployments(queue: str, pool: str) -> list[dict[str, Any]]:
    """Return the deployments of one queue on a work pool, with the fields of a `prefect.yaml`."""
    written = yaml.safe_load(read_prefect_yaml())["deployments"]
    return _filled_in(written, {"VERTEX_LAUNCH_QUEUE": queue, "VERTEX_LAUNCH_POOL": pool})


def _filled_in(value: Any, variables: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled_in(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled_in(each, variables) for each in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: variables[found[1]], value)
    return value
