"""`vertex-launch init`: a `prefect.yaml` for a project that deploys by `prefect deploy`."""

from __future__ import annotations

from pathlib import Path

from prefect_vertex_launch.cli.errors import CommandError
from prefect_vertex_launch.cli.prefect_yaml import NAME, read_prefect_yaml


def write_prefect_yaml(folder: Path, *, force: bool = False) -> Path:
    """Write the deployments into a folder's `prefect.yaml` and return its path.

    Raises CommandError when there is one already, unless `force` says to write over it, and when it cannot
    be written.
    """
    path = folder / NAME
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(read_prefect_yaml())
    except FileExistsError as error:
        raise CommandError(
            f"there is a {NAME} in {folder} already, and nothing was written",
            "add the three entries that `vertex-launch init --print` prints below its `deployments:`, "
            "or write over it with --force",
        ) from error
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror}", "run it in a folder of yours"
        ) from error
    return path


def next_steps() -> list[str]:
    """Return what a person does next, as commands."""
    return [
        "next: prefect work-pool create vertex-launch --type process",
        "      export VERTEX_LAUNCH_POOL=vertex-launch",
        "      VERTEX_LAUNCH_QUEUE=my-queue prefect --no-prompt deploy --all",
        "      prefect worker start --pool vertex-launch",
    ]
