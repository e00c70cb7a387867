"""What is printed and kept: on what it was measured, each figure beside its aim, the samples as JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, Result

PACKAGES = (
    "prefect-vertex-launch", "prefect", "prefect-gcp", "google-cloud-aiplatform", "wandb", "grpcio", "httpx",
    "fastapi", "sqlalchemy",
)  # fmt: skip
_VERDICTS = {True: "met", False: "NOT MET", None: ""}


def machine() -> dict[str, Any]:
    """Return what the figures depend on, without naming the machine."""
    return {
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_at_start": round(psutil.getloadavg()[0], 2),
        "versions": {name: version(name) for name in PACKAGES},
    }


def show(about: dict[str, Any], results: Sequence[Result]) -> None:
    """Print the table: every figure, its aim, and whether it is met."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    settings = "".join(f"\n{name}={value}" for name, value in about["settings"].items())
    console.print(
        f"{about['cores']} cores, {about['memory_gb']} GB, {about['system']}, Python {about['python']}, "
        f"{about['database']}, load {about['load_at_start']} at the start\n{versions}{settings}",
        highlight=False,
    )
    table = Table("measured", "", "aim", "", box=None, pad_edge=False)
    for result in results:
        sizes = ", ".join(f"{name} {value}" for name, value in result.sizes.items())
        table.add_section()
        table.add_row(f"[bold]{result.scenario}[/bold] ({sizes})")
        for figure in result.figures:
            table.add_row(
                f"  {figure.what}", _number(figure.value, figure.unit), _aim(figure), _verdict(figure)
            )
    console.print(table)


def save(path: Path, about: dict[str, Any], results: Sequence[Result]) -> None:
    """Write everything as JSON, raw samples included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"machine": about, "results": [result.to_json() for result in results]}
    path.write_text(json.dumps(kept, indent=1) + "\n")


def _number(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 20 else 3 if value < 1 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


def _aim(figure: Figure) -> str:
    return "" if figure.aim is None else f"≤ {figure.aim:g} {figure.unit}".rstrip()


def _verdict(figure: Figure) -> str:
    verdict = _VERDICTS[figure.is_met]
    return f"[red]{verdict}[/red]" if figure.is_met is False else f"[green]{verdict}[/green]"
