"""Which machine types Vertex AI trains on, and which accelerators fit onto them, as data.

Source: https://cloud.google.com/vertex-ai/docs/training/configure-compute (machine types, GPUs, TPUs).
Google adds types and regions differ, so a type that is not listed here is a warning, never an error;
an accelerator that a listed type cannot have is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, shown
from prefect_vertex_launch.core.spelling import right_spelling
from prefect_vertex_launch.core.vertex_types import AcceleratorType
from prefect_vertex_launch.jobspec.config.macros import has_macro

Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MachineType:
    """What a machine type may or must be given.

    `accelerators` maps each accelerator that fits to the counts that do; `required` means that the
    type exists only with its accelerator. `topology` marks TPU types, which take `tpu_topology`.
    """

    accelerators: Mapping[AcceleratorType, Counts]
    required: bool = False
    topology: bool = False


_A = AcceleratorType


def _sizes(prefix: str, sizes: str) -> list[str]:
    return [f"{prefix}-{size}" for size in sizes.split()]


def _fixed(accelerator: AcceleratorType, **counts: str) -> dict[str, MachineType]:
    """Return types that exist only with one count of one accelerator: count_N = names."""
    return {
        name: MachineType({accelerator: (int(count.removeprefix("count_")),)}, required=True)
        for count, names in counts.items()
        for name in names.split()
    }


# Columns: P4, P100, T4, V100.
_N1_COUNTS: Final[dict[str, tuple[Counts, Counts, Counts, Counts]]] = {
    "standard-4": ((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8)),
    "standard-8": ((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8)),
    "standard-16": ((1, 2, 4), (1, 2, 4), (1, 2, 4), (2, 4, 8)),
    "standard-32": ((2, 4), (2, 4), (2, 4), (4, 8)),
    "standard-64": ((4,), (), (4,), (8,)),
    "standard-96": ((4,), (), (4,), (8,)),
    "highmem-2": ((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8)),
    "highmem-4": ((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8)),
    "highmem-8": ((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8)),
    "highmem-16": ((1, 2, 4), (1, 2, 4), (1, 2, 4), (2, 4, 8)),
    "highmem-32": ((2, 4), (2, 4), (2, 4), (4, 8)),
    "highmem-64": ((4,), (), (4,), (8,)),
    "highmem-96": ((4,), (), (4,), (8,)),
    "highcpu-16": ((1, 2, 4), (1, 2, 4), (1, 2, 4), (2, 4, 8)),
    "highcpu-32": ((2, 4), (2, 4), (2, 4), (4, 8)),
    "highcpu-64": ((4,), (4,), (4,), (8,)),
    "highcpu-96": ((4,), (), (4,), (8,)),
}
_N1_ACCELERATORS: Final = (
    _A.NVIDIA_TESLA_P4, _A.NVIDIA_TESLA_P100, _A.NVIDIA_TESLA_T4, _A.NVIDIA_TESLA_V100,
)  # fmt: skip

_WITHOUT_ACCELERATOR: Final = [
    *_sizes("e2-standard", "4 8 16 32"),
    *_sizes("e2-highmem", "2 4 8 16"),
    *_sizes("e2-highcpu", "16 32"),
    *_sizes("n2-standard", "4 8 16 32 48 64 80"),
    *_sizes("n2-highmem", "2 4 8 16 32 48 64 80"),
    *_sizes("n2-highcpu", "16 32 48 64 80"),
    *_sizes("n4-standard", "2 4 8 16 32 48 64 80"),
    *_sizes("n4-highmem", "2 4 8 16 32 48 64 80"),
    *_sizes("n4-highcpu", "2 4 8 16 32 48 64 80"),
    *_sizes("c2-standard", "4 8 16 30 60"),
    *_sizes("m1-ultramem", "40 80 160"),
    *_sizes("m1-megamem", "96"),
]
_TPU_SLICES: Final = [
    *_sizes("ct5lp-hightpu", "1t 4t 8t"),
    *_sizes("ct6e-standard", "1t 4t 8t"),
    "tpu7x-standard-4t",
]
# A TPU v2 or v3 board has 8 cores; pods come in multiples of 32.
_TPU_CORES: Final = (8, *range(32, 2049, 32))

MACHINE_TYPES: Final[Mapping[str, MachineType]] = {
    **{
        f"n1-{size}": MachineType(
            {kind: fits for kind, fits in zip(_N1_ACCELERATORS, counts, strict=True) if fits}
        )
        for size, counts in _N1_COUNTS.items()
    },
    **{name: MachineType({}) for name in _WITHOUT_ACCELERATOR},
    **_fixed(
        _A.NVIDIA_TESLA_A100,
        count_1="a2-highgpu-1g", count_2="a2-highgpu-2g", count_4="a2-highgpu-4g",
        count_8="a2-highgpu-8g", count_16="a2-megagpu-16g",
    ),
    **_fixed(
        _A.NVIDIA_A100_80GB,
        count_1="a2-ultragpu-1g", count_2="a2-ultragpu-2g", count_4="a2-ultragpu-4g",
        count_8="a2-ultragpu-8g",
    ),
    **_fixed(
        _A.NVIDIA_H100_80GB,
        count_1="a3-highgpu-1g", count_2="a3-highgpu-2g", count_4="a3-highgpu-4g",
        count_8="a3-highgpu-8g",
    ),
    **_fixed(_A.NVIDIA_H100_MEGA_80GB, count_8="a3-megagpu-8g"),
    **_fixed(_A.NVIDIA_H200_141GB, count_8="a3-ultragpu-8g"),
    **_fixed(_A.NVIDIA_B200, count_8="a4-highgpu-8g"),
    **_fixed(_A.NVIDIA_GB200, count_4="a4x-highgpu-4g"),
    **_fixed(
        _A.NVIDIA_L4,
        count_1="g2-standard-4 g2-standard-8 g2-standard-12 g2-standard-16 g2-standard-32",
        count_2="g2-standard-24", count_4="g2-standard-48", count_8="g2-standard-96",
    ),
    **_fixed(
        _A.NVIDIA_RTX_PRO_6000,
        count_1="g4-standard-48", count_2="g4-standard-96", count_4="g4-standard-192",
        count_8="g4-standard-384",
    ),
    **{name: MachineType({}, topology=True) for name in _TPU_SLICES},
    "cloud-tpu": MachineType({_A.TPU_V2: _TPU_CORES, _A.TPU_V3: _TPU_CORES}, required=True),
}  # fmt: skip

# Flex-start takes these only: https://cloud.google.com/vertex-ai/docs/training/schedule-jobs-dws
FLEX_START_ACCELERATORS: Final = frozenset({
    _A.NVIDIA_L4, _A.NVIDIA_TESLA_A100, _A.NVIDIA_A100_80GB, _A.NVIDIA_H100_80GB,
    _A.NVIDIA_H100_MEGA_80GB, _A.NVIDIA_H200_141GB, _A.NVIDIA_B200,
})  # fmt: skip


def accelerator_of(value: object) -> AcceleratorType | None:
    """Return the accelerator that a spec names by name or number; None if it names none (yet)."""
    if isinstance(value, str):
        return AcceleratorType.__members__.get(value)
    if isinstance(value, int) and value in {member.value for member in AcceleratorType}:
        return AcceleratorType(value)
    return None


def check_machine(spec: Mapping[str, object], path: str, findings: Findings) -> None:
    """Check the accelerator of a machine spec on its own and against its machine type.

    `spec` has been walked: known fields of the right kinds, except that macros may be pending.
    """
    kind, count = spec.get("accelerator_type"), spec.get("accelerator_count")
    if has_macro(kind) or has_macro(count):
        return
    accelerator = accelerator_of(kind)
    number = count if isinstance(count, int) else 0
    if kind is not None and accelerator is None:
        return  # the walk has refused it
    if not _pair_is_complete(accelerator, number, path, findings):
        return
    name = spec.get("machine_type")
    if not isinstance(name, str) or not name or has_macro(name):
        return
    machine = MACHINE_TYPES.get(name)
    if machine is None:
        meant = right_spelling(name, MACHINE_TYPES)
        hint = f"; did you mean {meant}?" if meant else ""
        findings.warn(
            at(path, "machine_type"), f"{shown(name)} is not in the list of known machine types{hint}"
        )
        return
    _check_fit(name, machine, accelerator, number, path, findings)
    if machine.topology and not spec.get("tpu_topology"):
        findings.warn(at(path, "tpu_topology"), f"{name} usually needs a topology, such as 2x2")


def _pair_is_complete(accelerator: AcceleratorType | None, count: int, path: str, findings: Findings) -> bool:
    why = "accelerator_type and accelerator_count go together: both or none"
    if count < 0:
        findings.refuse(
            at(path, "accelerator_count"),
            f"{count} is negative",
            "a machine has none or some",
            "Say how many.",
        )
    elif accelerator and not count:
        findings.refuse(
            at(path, "accelerator_count"), f"{accelerator.name} without a count", why, "Say how many."
        )
    elif count and not accelerator:
        findings.refuse(
            at(path, "accelerator_type"), f"a count of {count} without a type", why, "Say which accelerator."
        )
    else:
        return True
    return False


def _check_fit(
    name: str,
    machine: MachineType,
    accelerator: AcceleratorType | None,
    count: int,
    path: str,
    findings: Findings,
) -> None:
    fitting = "; ".join(f"{kind.name} x {_counted(counts)}" for kind, counts in machine.accelerators.items())
    if not accelerator:
        if machine.required:
            findings.refuse(
                at(path, "accelerator_type"),
                "missing",
                f"{name} exists only with {fitting}",
                f"Set {fitting}.",
            )
        return
    if accelerator not in machine.accelerators:
        why = f"{name} takes {fitting}" if fitting else f"{name} takes no accelerator_type"
        homes = [other for other, known in MACHINE_TYPES.items() if accelerator in known.accelerators]
        fix = f"{accelerator.name} fits onto {', '.join(homes[:6])}." if homes else ""
        findings.refuse(
            at(path, "accelerator_type"), f"{accelerator.name} does not fit onto {name}", why, fix
        )
    elif count not in machine.accelerators[accelerator]:
        findings.refuse(
            at(path, "accelerator_count"),
            f"{count} x {accelerator.name} does not fit onto {name}",
            f"{name} takes {fitting}",
        )


def _counted(counts: Counts) -> str:
    if len(counts) > 4:
        return f"{counts[0]}, {counts[1]}, … {counts[-1]}"
    return " or ".join(str(count) for count in counts)
