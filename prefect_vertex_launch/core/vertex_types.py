"""What Vertex AI's job service speaks: jobs, their states, requests and answers.

The one door of the pure part to `google.cloud.aiplatform_v1`. Nothing but protobuf is imported for it:
no gRPC, no credentials, no HTTP. The clients of the service are in `vertex_client.py`.
"""

from __future__ import annotations

from prefect_vertex_launch.core.deferred_package import defer_package

defer_package("google.cloud.aiplatform_v1")
defer_package("google.cloud.aiplatform_v1.types")

from google.cloud.aiplatform_v1.types.accelerator_type import AcceleratorType  # noqa: E402
from google.cloud.aiplatform_v1.types.custom_job import (  # noqa: E402
    CustomJob,
    CustomJobSpec,
    Scheduling,
    WorkerPoolSpec,
)
from google.cloud.aiplatform_v1.types.job_service import (  # noqa: E402
    CancelCustomJobRequest,
    CreateCustomJobRequest,
    DeleteCustomJobRequest,
    GetCustomJobRequest,
    ListCustomJobsRequest,
    ListCustomJobsResponse,
)
from google.cloud.aiplatform_v1.types.job_state import JobState  # noqa: E402
from google.cloud.aiplatform_v1.types.machine_resources import MachineSpec  # noqa: E402
from google.cloud.aiplatform_v1.types.service_networking import PscInterfaceConfig  # noqa: E402

__all__ = [
    "AcceleratorType",
    "CancelCustomJobRequest",
    "CreateCustomJobRequest",
    "CustomJob",
    "CustomJobSpec",
    "DeleteCustomJobRequest",
    "GetCustomJobRequest",
    "JobState",
    "ListCustomJobsRequest",
    "ListCustomJobsResponse",
    "MachineSpec",
    "PscInterfaceConfig",
    "Scheduling",
    "WorkerPoolSpec",
]
