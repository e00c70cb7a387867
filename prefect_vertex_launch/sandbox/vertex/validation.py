"""What Vertex AI refuses in a CustomJob when it is created, and in which words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from prefect_vertex_launch.core.vertex_types import AcceleratorType
from prefect_vertex_launch.jobspec.config.machine_types import MACHINE_TYPES

_REQUIRED: Final = "Required field is not set."
_LABEL_RULE: Final = (
    "There can be no more than 64 labels attached to a single resource. Label keys and values can only"
    " contain lowercase letters, numbers, dashes and underscores. Label keys must start with a letter or"
    " number, must be less than 64 characters in length, and must be less than 128 bytes in length when"
    " encoded in UTF-8. Label values must be less than 64 characters in length, and must be less than"
    " 128 bytes in length when encoded in UTF-8."
)
_ACCELERATOR_NAMES: Final = {member.value: member.name for member in AcceleratorType}
_STORAGE_RULE: Final = "The value must be a Google Cloud Storage URI, starting with gs://."
# An assumption: Google names no bound but the project's quotas, which are lower than this.
_MAX_REPLICAS: Final = 1000
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

FieldError = tuple[str, str]


def job_errors(job: Any) -> list[FieldError]:
    """Return everything that is wrong with a CustomJob message, as (field, message) pairs."""
    return [
        *_name_errors(job.display_name),
        *_label_errors(job.labels),
        *_pool_list_errors(job.job_spec.worker_pool_specs),
        *_output_errors(job.job_spec),
    ]


def _name_errors(display_name: str) -> Iterator[FieldError]:
    if not display_name:
        yield "display_name", _REQUIRED
    if len(display_name) > 128:
        yield (
            "display_name",
            "The name can be up to 128 characters long and can consist of any UTF-8 characters.",
        )


def _label_errors(labels: Mapping[str, str]) -> Iterator[FieldError]:
    keys_are_valid = all(key[:1].isalnum() and _is_label(key) for key in labels)
    if len(labels) > 64 or not keys_are_valid or not all(map(_is_label, labels.values())):
        yield "labels", _LABEL_RULE


def _is_label(text: str) -> bool:
    if len(text) >= 64 or len(text.encode()) >= 128:
        return False
    return all(char in "-_" or (char.isalnum() and char == char.lower()) for char in text)


def _pool_list_errors(pools: Any) -> Iterator[FieldError]:
    if not pools:
        yield "job_spec.worker_pool_specs", _REQUIRED
    if len(pools) > 4:
        yield "job_spec.worker_pool_specs", "At most 4 worker pools are supported."
    for index, pool in enumerate(pools):
        # A pool after the first may be left out with an empty message.
        if index == 0 or pool.ByteSize():
            yield from _pool_errors(pool, f"job_spec.worker_pool_specs[{index}]", is_primary=index == 0)


def _pool_errors(pool: Any, path: str, *, is_primary: bool) -> Iterator[FieldError]:
    if is_primary and pool.replica_count != 1:
        yield f"{path}.replica_count", "The first worker pool must have exactly one replica."
    elif pool.replica_count < 1:
        yield f"{path}.replica_count", "The replica count must be at least 1."
    elif pool.replica_count > _MAX_REPLICAS:
        yield f"{path}.replica_count", f"The replica count must be at most {_MAX_REPLICAS}."
    task = pool.WhichOneof("task")
    if task is None:
        yield f"{path}.task", "Exactly one of `container_spec` and `python_package_spec` should be specified."
    elif task == "container_spec":
        if not pool.container_spec.image_uri:
            yield f"{path}.container_spec.image_uri", _REQUIRED
        yield from _env_errors(pool.container_spec.env, f"{path}.container_spec.env")
    else:
        yield from _package_errors(pool.python_package_spec, f"{path}.python_package_spec")
    yield from _machine_errors(pool.machine_spec, f"{path}.machine_spec")
    disk_gb = pool.disk_spec.boot_disk_size_gb
    if disk_gb and not 100 <= disk_gb <= 64000:
        yield f"{path}.disk_spec.boot_disk_size_gb", "The boot disk size must be between 100 and 64000 GB."


def _package_errors(package: Any, path: str) -> Iterator[FieldError]:
    for field in ("executor_image_uri", "package_uris", "python_module"):
        if not getattr(package, field):
            yield f"{path}.{field}", _REQUIRED
    if len(package.package_uris) > 100:
        yield f"{path}.package_uris", "At most 100 packages can be specified."
    for index, uri in enumerate(package.package_uris):
        if not _is_storage_uri(uri):
            yield f"{path}.package_uris[{index}]", _STORAGE_RULE
    yield from _env_errors(package.env, f"{path}.env")


def _env_errors(env: Any, path: str) -> Iterator[FieldError]:
    if len(env) > 100:
        yield path, "At most 100 environment variables can be specified."
    for index, variable in enumerate(env):
        if not _ENV_NAME.fullmatch(variable.name):
            yield f"{path}[{index}].name", "EnvVar name must be a valid C identifier."
    if any(count > 1 for count in Counter(variable.name for variable in env).values()):
        yield path, "EnvVar names must be unique."


def _machine_errors(machine: Any, path: str) -> Iterator[FieldError]:
    name = machine.machine_type
    if not name:
        yield f"{path}.machine_type", _REQUIRED
    if bool(machine.accelerator_type) != bool(machine.accelerator_count):
        yield (
            f"{path}.accelerator_type",
            "Both `accelerator_type` and `accelerator_count` should be specified or none.",
        )
        return
    known = MACHINE_TYPES.get(name)
    if known is None:
        if name:
            yield f"{path}.machine_type", f'Machine type "{name}" is not supported.'
        return
    yield from _fit_errors(machine, known.accelerators, path)


def _fit_errors(
    machine: Any, fitting: Mapping[AcceleratorType, Sequence[int]], path: str
) -> Iterator[FieldError]:
    number, count = machine.accelerator_type, machine.accelerator_count
    if not number:
        return
    name = _ACCELERATOR_NAMES.get(number, str(number))
    counts = {accelerator.value: counts for accelerator, counts in fitting.items()}.get(number)
    if counts is None:
        message = f'Accelerator "{name}" is not supported for machine type "{machine.machine_type}".'
        yield f"{path}.accelerator_type", message
    elif count not in counts:
        message = (
            f'Accelerator count {count} of "{name}" is not supported for machine type'
            f' "{machine.machine_type}".'
        )
        yield f"{path}.accelerator_count", message


def _output_errors(job_spec: Any) -> Iterator[FieldError]:
    if not job_spec.HasField("base_output_directory"):
        return
    if not _is_storage_uri(job_spec.base_output_directory.output_uri_prefix):
        yield "job_spec.base_output_directory.output_uri_prefix", _STORAGE_RULE


def _is_storage_uri(uri: str) -> bool:
    return uri.startswith("gs://") and bool(uri.removeprefix("gs://").strip("/"))
