"""The rules for worker pools that the message types do not carry.

Sources: the field comments of `CustomJobSpec` in `google.cloud.aiplatform_v1` and
https://cloud.google.com/vertex-ai/docs/training/distributed-training (pool roles).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_object, shown
from prefect_vertex_launch.jobspec.config.machine_types import check_machine
from prefect_vertex_launch.jobspec.config.macros import has_macro

MAX_POOLS: Final = 4
MAX_ENV: Final = 100
MAX_PACKAGES: Final = 100
_C_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DISK_TYPES: Final = frozenset({"pd-ssd", "pd-standard", "hyperdisk-balanced"})
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "nfs_mounts": ("server", "path", "mount_point"),
    "lustre_mounts": ("instance_ip", "volume_handle", "filesystem", "mount_point"),
}
TASKS: Final = ("container_spec", "python_package_spec")

Pool = Mapping[str, Any]


def check_pools(
    pools: Sequence[Pool], path: str, *, persistent: bool, findings: Findings, macros_pending: bool
) -> None:
    """Check pools that have been walked; `persistent` if a persistent resource runs the job.

    With `macros_pending` the name of a variable that has a macro in it waits for it.
    """
    for index, pool in enumerate(pools):
        where = at(path, index)
        if not pool:
            if index == 0:
                findings.refuse(where, "empty", "the first pool is the primary one", "Describe it.")
            continue
        _check_replicas(pool, where, primary=index == 0, findings=findings)
        _check_task(pool, where, findings, macros_pending=macros_pending)
        check_machine_spec(pool, where, persistent=persistent, findings=findings)
        _check_disk(pool, where, findings)
        _check_mounts(pool, where, findings)


def check_env(
    env: Sequence[Mapping[str, Any]], path: str, findings: Findings, *, macros_pending: bool
) -> None:
    """Check names and number of a task's environment variables.

    With `macros_pending` a name that has a macro in it waits for it.
    """
    check_env_count(len(env), path, findings)
    seen: dict[str, int] = {}
    for index, variable in enumerate(env):
        where = at(at(path, index), "name")
        name = variable.get("name")
        if (macros_pending and has_macro(name)) or findings.is_refused(where):
            continue
        if not isinstance(name, str) or not name:
            findings.refuse(where, "missing", "a variable needs a name", "Name it or remove it.")
        elif not _C_IDENTIFIER.fullmatch(name):
            findings.refuse(
                where,
                f"{shown(name)} is not a valid name",
                "letters, digits and underscores, not starting with a digit",
                "Rename it.",
            )
        elif name in seen:
            findings.refuse(
                where,
                f"{shown(name)} is there twice",
                f"the first is env[{seen[name]}]",
                "Remove one of them.",
            )
        else:
            seen[name] = index


def check_env_count(count: int, path: str, findings: Findings) -> None:
    """Check the number of a task's environment variables."""
    if count > MAX_ENV:
        findings.refuse(
            path,
            f"{count} environment variables",
            f"a task takes at most {MAX_ENV}, the launch's own among them",
            "Put what they say into a W&B artifact or into a file in a bucket.",
        )


def _check_replicas(pool: Pool, where: str, *, primary: bool, findings: Findings) -> None:
    count = pool.get("replica_count")
    path = at(where, "replica_count")
    if count is not None and not isinstance(count, int):
        return  # a macro
    # Without a count 0 is sent, so both are the same job to Vertex AI.
    what = "missing" if count is None else f"{count} replicas"
    if primary and count != 1:
        findings.refuse(path, what, "the first pool is the primary replica alone", "Set it to 1.")
    elif not primary and (count or 0) < 1:
        findings.refuse(
            path,
            what,
            "a pool that is there has at least one replica",
            "Set it to 1 or more, or write {} for a pool that is left out.",
        )


def _check_task(pool: Pool, where: str, findings: Findings, *, macros_pending: bool) -> None:
    given = [name for name in TASKS if name in pool]
    if not given:
        findings.refuse(
            where, "neither container_spec nor python_package_spec", "a pool runs one of them", "Set one."
        )
    for name in given:
        task, path = pool[name], at(where, name)
        if not is_object(task):
            continue
        _require(
            task,
            ("image_uri",) if name == TASKS[0] else ("executor_image_uri", "python_module"),
            path,
            findings,
        )
        if name == TASKS[1]:
            _check_packages(task, path, findings)
        check_env(task.get("env", ()), at(path, "env"), findings, macros_pending=macros_pending)


def _check_packages(task: Mapping[str, Any], where: str, findings: Findings) -> None:
    packages: Sequence[Any] = task.get("package_uris", ())
    path = at(where, "package_uris")
    if not packages:
        findings.refuse(
            path, "missing", "Vertex AI installs the code from there", "Name at least one gs:// URI."
        )
    if len(packages) > MAX_PACKAGES:
        findings.refuse(
            path,
            f"{len(packages)} packages",
            f"a task takes at most {MAX_PACKAGES}",
            "Put several into one archive.",
        )
    for index, uri in enumerate(packages[:MAX_PACKAGES]):
        if isinstance(uri, str) and not has_macro(uri) and not uri.startswith("gs://"):
            findings.refuse(
                at(path, index),
                f"{shown(uri)} is not a gs:// URI",
                "Vertex AI installs packages from Cloud Storage only",
                "Upload it and write gs://my-bucket/package.tar.gz, say.",
            )


def check_machine_spec(pool: Pool, where: str, *, persistent: bool, findings: Findings) -> None:
    """Check the machine of a pool that stands at `where`; `persistent` as for `check_pools`."""
    path = at(where, "machine_spec")
    machine: Pool = pool.get("machine_spec", {})
    if not machine.get("machine_type"):
        if persistent:
            findings.warn(at(path, "machine_type"), "missing; the persistent resource must know the pool")
        else:
            findings.refuse(
                at(path, "machine_type"),
                "missing",
                "a pool needs a machine type",
                "Set one, such as n1-standard-4.",
            )
    check_machine(machine, path, findings)
    if machine.get("gpu_partition_size") and machine.get("accelerator_count") != 1:
        findings.warn(at(path, "gpu_partition_size"), "accelerator_count should be 1 with it")
    affinity = machine.get("reservation_affinity")
    if is_object(affinity) and affinity.get("reservation_affinity_type") in {
        "SPECIFIC_RESERVATION",
        3,
    }:
        _require(affinity, ("key", "values"), at(path, "reservation_affinity"), findings)


def _check_disk(pool: Pool, where: str, findings: Findings) -> None:
    disk = pool.get("disk_spec")
    if not is_object(disk):
        return
    path = at(where, "disk_spec")
    size, kind = disk.get("boot_disk_size_gb"), disk.get("boot_disk_type")
    if isinstance(size, int) and not 100 <= size <= 64000:
        findings.refuse(
            at(path, "boot_disk_size_gb"), f"{size} GB", "a boot disk has 100 to 64000 GB", "Set it to 100."
        )
    if isinstance(kind, str) and kind and not has_macro(kind) and kind not in _DISK_TYPES:
        findings.warn(
            at(path, "boot_disk_type"), f"{shown(kind)} is none of {', '.join(sorted(_DISK_TYPES))}"
        )


def _check_mounts(pool: Pool, where: str, findings: Findings) -> None:
    for name, required in _REQUIRED.items():
        for index, mount in enumerate(pool.get(name, ())):
            path = at(at(where, name), index)
            if not is_object(mount):
                continue
            _require(mount, required, path, findings)
            source = mount.get("path")
            if isinstance(source, str) and source and not has_macro(source) and not source.startswith("/"):
                findings.refuse(
                    at(path, "path"),
                    f"{shown(source)} does not start with /",
                    "it is the path that the server exports",
                    "Put a / in front of it.",
                )


def _require(value: Mapping[str, Any], names: Sequence[str], path: str, findings: Findings) -> None:
    for name in names:
        if not value.get(name):
            findings.refuse(at(path, name), "missing", "it is required here", "Set it.")
