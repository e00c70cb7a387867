"""The ids W&B hands out: base64 of a type name and a number or a path."""

from __future__ import annotations

import base64


def make_id(type_name: str, rest: str | int) -> str:
    """Return a W&B id, e.g. `UnVuUXVldWVJdGVtOjU=` for `RunQueueItem:5`."""
    return base64.b64encode(f"{type_name}:{rest}".encode()).decode()


def run_id(entity: str, project: str, name: str) -> str:
    """Return a run's global id (`Run:v1:<run>:<project>:<entity>`), as stopRun and deleteRun take it."""
    return make_id("Run", f"v1:{name}:{project}:{entity}")


def sweep_id(entity: str, project: str, name: str) -> str:
    """Return a sweep's global id, as upsertSweep takes it."""
    return make_id("Sweep", f"v1:{name}:{project}:{entity}")


def run_key_of(global_id: str) -> str | None:
    """Return `entity/project/run` of a run's global id, or None if it is not one."""
    try:
        parts = base64.b64decode(global_id, validate=True).decode().split(":")
    except ValueError:  # not ASCII, not base64, not UTF-8
        return None
    if len(parts) != 5 or parts[:2] != ["Run", "v1"]:
        return None
    return f"{parts[4]}/{parts[3]}/{parts[2]}"
