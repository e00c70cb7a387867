"""Imports: what each costs in time and memory, in a fresh interpreter with its bytecode compiled."""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks.figures import Figure, Result, median

MODULES = (
    "google.cloud.aiplatform",
    "google.cloud.aiplatform_v1.services.job_service",
    "prefect_vertex_launch.core.vertex_types",
    "prefect_vertex_launch.vertex.client",
    "prefect_vertex_launch.blocks.vertex_queue",
    "prefect",
    "prefect_vertex_launch.flows.agent",
)
_PROGRAM = """
import importlib, json, psutil, sys, time
before = time.perf_counter()
importlib.import_module(sys.argv[1])
seconds = time.perf_counter() - before
print(json.dumps([seconds, psutil.Process().memory_info().rss / 1e6]))
"""


async def measure(repeat: int) -> Result:
    """Import each module so many times, once more beforehand to warm up."""
    samples: dict[str, list[list[float]]] = {}
    for module in MODULES:
        await _import(module)
        samples[module] = [await _import(module) for _ in range(repeat)]
    figures: list[Figure] = []
    for module, measured in samples.items():
        figures += [
            Figure(f"import {module}", median([seconds for seconds, _ in measured]), "s"),
            Figure(f"import {module}: memory", median([megabytes for _, megabytes in measured]), "MB"),
        ]
    return Result("imports", {"repeat": repeat}, figures, {"seconds_and_mb": samples})


async def _import(module: str) -> list[float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, module, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{module} could not be imported")
    return json.loads(output.decode().splitlines()[-1])
