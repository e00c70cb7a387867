"""The fields of a job that the locks know: those that a lock holds, and those that are left open.

A new version of Google's library may bring further ones. In secure mode such a field is locked until somebody
has decided about it here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect_vertex_launch.core.json_value import at, is_list, is_object

_TASK_FIELDS: Final = ("env.name", "env.value")
HELD: Final = frozenset({
    "service_account", "network", "reserved_ip_ranges", "persistent_resource_id", "enable_web_access",
    "enable_dashboard_access", "psc_interface_config.network_attachment",
    "psc_interface_config.dns_peering_configs.target_project",
    "psc_interface_config.dns_peering_configs.target_network",
    *(f"worker_pool_specs.container_spec.{name}" for name in ("image_uri", "command", *_TASK_FIELDS)),
    *(
        f"worker_pool_specs.python_package_spec.{name}"
        for name in ("executor_image_uri", "package_uris", "python_module", *_TASK_FIELDS)
    ),
    *(f"worker_pool_specs.nfs_mounts.{name}" for name in ("server", "path", "mount_point")),
    *(
        f"worker_pool_specs.lustre_mounts.{name}"
        for name in ("instance_ip", "volume_handle", "filesystem", "mount_point")
    ),
    "worker_pool_specs.machine_spec.machine_type",
})  # fmt: skip
OPEN: Final = frozenset({
    "worker_pool_specs.container_spec.args", "worker_pool_specs.python_package_spec.args",
    "worker_pool_specs.replica_count",
    *(
        f"worker_pool_specs.disk_spec.{name}"
        for name in ("boot_disk_type", "boot_disk_size_gb")
    ),
    *(
        f"worker_pool_specs.machine_spec.{name}"
        for name in (
            "accelerator_type", "accelerator_count", "gpu_partition_size", "tpu_topology",
            "reservation_affinity.reservation_affinity_type", "reservation_affinity.key",
            "reservation_affinity.values",
        )
    ),
    "psc_interface_config.dns_peering_configs.domain",
    *(
        f"scheduling.{name}"
        for name in (
            "timeout.seconds", "timeout.nanos", "restart_job_on_worker_restart", "strategy",
            "disable_retries", "max_wait_duration.seconds", "max_wait_duration.nanos",
        )
    ),
    "base_output_directory.output_uri_prefix", "tensorboard", "experiment", "experiment_run", "models",
    "protected_artifact_location_id",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value of a job that has no members: its field, `worker_pool_specs.replica_count` say, and path."""

    field: str
    path: str
    value: object


def new_fields(spec: Mapping[str, Any], paths: Mapping[str, str]) -> Iterator[Leaf]:
    """Yield what a job's spec holds in fields that the locks do not know.

    `paths` are where the parts of the spec were written, by their fields.
    """
    for field, path in paths.items():
        yield from _leaves(spec.get(field), field, path)


def _leaves(value: Any, field: str, path: str) -> Iterator[Leaf]:
    if field in HELD or field in OPEN:
        return
    if is_object(value):
        for name, member in value.items():
            yield from _leaves(member, f"{field}.{name}", at(path, name))
    elif is_list(value):
        for index, member in enumerate(value):
            yield from _leaves(member, field, at(path, index))
    elif value is not None:
        yield Leaf(field, path, value)
