"""Accelerators are held against the machine type; what the table does not know is only a warning."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.vertex_types import AcceleratorType
from prefect_vertex_launch.jobspec.config.machine_types import MACHINE_TYPES, check_machine


def check(machine_type: str, accelerator: Any = None, count: Any = None, **more: Any) -> Findings:
    given = {
        "machine_type": machine_type,
        "accelerator_type": accelerator,
        "accelerator_count": count,
        **more,
    }
    findings = Findings()
    check_machine({key: value for key, value in given.items() if value is not None}, "machine", findings)
    return findings


@pytest.mark.parametrize(
    ("machine_type", "accelerator", "count"),
    [
        ("n1-standard-4", None, None),
        ("n1-standard-4", "NVIDIA_TESLA_T4", 4),
        ("n1-standard-4", 5, 1),
        ("n1-highcpu-64", "NVIDIA_TESLA_P100", 4),
        ("a2-highgpu-2g", "NVIDIA_TESLA_A100", 2),
        ("a2-megagpu-16g", "NVIDIA_TESLA_A100", 16),
        ("a2-ultragpu-8g", "NVIDIA_A100_80GB", 8),
        ("a3-highgpu-8g", "NVIDIA_H100_80GB", 8),
        ("g2-standard-24", "NVIDIA_L4", 2),
        ("g2-standard-96", "NVIDIA_L4", 8),
        ("cloud-tpu", "TPU_V3", 32),
        ("e2-standard-4", "ACCELERATOR_TYPE_UNSPECIFIED", 0),
        ("n1-standard-4", "${gpu}", "${count}"),
        ("${machine}", "NVIDIA_L4", 1),
    ],
)
def test_what_fits_is_taken(machine_type: str, accelerator: Any, count: Any) -> None:
    findings = check(machine_type, accelerator, count)
    assert (findings.problems, findings.warnings) == ([], ())


@pytest.mark.parametrize(
    ("machine_type", "accelerator", "count", "where", "says"),
    [
        ("n1-standard-4", "NVIDIA_TESLA_A100", 1, "accelerator_type", "a2-highgpu-1g"),
        ("n1-standard-4", "NVIDIA_TESLA_K80", 1, "accelerator_type", "NVIDIA_TESLA_T4"),
        ("n1-standard-64", "NVIDIA_TESLA_P100", 1, "accelerator_type", "n1-standard-32"),
        ("n1-standard-4", "NVIDIA_TESLA_T4", 3, "accelerator_count", "1 or 2 or 4"),
        ("a2-highgpu-2g", None, None, "accelerator_type", "only with NVIDIA_TESLA_A100 x 2"),
        ("a2-highgpu-2g", "NVIDIA_TESLA_A100", 1, "accelerator_count", "x 2"),
        ("a2-highgpu-1g", "NVIDIA_L4", 1, "accelerator_type", "g2-standard-4"),
        ("g2-standard-4", "NVIDIA_L4", 2, "accelerator_count", "x 1"),
        ("e2-standard-4", "NVIDIA_TESLA_T4", 1, "accelerator_type", "takes no accelerator_type"),
        ("ct5lp-hightpu-1t", "TPU_V5_LITEPOD", 1, "accelerator_type", "takes no accelerator_type"),
        ("cloud-tpu", None, None, "accelerator_type", "TPU_V2"),
        ("cloud-tpu", "TPU_V2", 9, "accelerator_count", "8, 32"),
        ("n1-standard-4", "NVIDIA_TESLA_T4", None, "accelerator_count", "both or none"),
        ("n1-standard-4", "NVIDIA_TESLA_T4", 0, "accelerator_count", "both or none"),
        ("n1-standard-4", None, 2, "accelerator_type", "both or none"),
        ("unheard-of-8", "NVIDIA_TESLA_T4", None, "accelerator_count", "both or none"),
        ("n1-standard-4", "NVIDIA_TESLA_T4", -1, "accelerator_count", "negative"),
    ],
)
def test_what_does_not_fit_is_refused(
    machine_type: str, accelerator: Any, count: Any, where: str, says: str
) -> None:
    (problem,) = check(machine_type, accelerator, count).problems
    assert problem.where == f"machine.{where}"
    assert says in str(problem)


@pytest.mark.parametrize("machine_type", ["n1-standard-2", "a9-gigagpu-1g", "a2-highgpu-3g", "custom"])
def test_an_unknown_machine_type_is_a_warning(machine_type: str) -> None:
    findings = check(machine_type, "NVIDIA_B200", 3)
    assert findings.problems == []
    assert machine_type in findings.warnings[0]


def test_every_gpu_that_the_sdk_knows_has_a_machine_or_is_out_of_service() -> None:
    """A new accelerator in the SDK must be put into the table."""
    fitting = {kind for machine in MACHINE_TYPES.values() for kind in machine.accelerators}
    assert set(AcceleratorType) - fitting == {
        AcceleratorType.ACCELERATOR_TYPE_UNSPECIFIED,
        AcceleratorType.NVIDIA_TESLA_K80,
        AcceleratorType.TPU_V4_POD,  # v4 and newer go by machine type and topology
        AcceleratorType.TPU_V5_LITEPOD,
    }
