"""Google's generated clients of Vertex AI's job service, without the other 49 services.

They bring gRPC, google-auth and requests with them; who needs only a job or its state takes it from
`vertex_types.py`.
"""

from __future__ import annotations

from prefect_vertex_launch.core.deferred_package import defer_package

defer_package("google.cloud.aiplatform_v1")
defer_package("google.cloud.aiplatform_v1.types")

from google.cloud.aiplatform_v1.services.job_service.async_client import JobServiceAsyncClient  # noqa: E402
from google.cloud.aiplatform_v1.services.job_service.client import JobServiceClient  # noqa: E402
from google.cloud.aiplatform_v1.services.job_service.transports.grpc_asyncio import (  # noqa: E402
    JobServiceGrpcAsyncIOTransport,
)

__all__ = ["JobServiceAsyncClient", "JobServiceClient", "JobServiceGrpcAsyncIOTransport"]
