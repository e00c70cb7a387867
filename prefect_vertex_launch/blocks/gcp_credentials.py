"""`GcpCredentials` of prefect-gcp, without the part of the Vertex AI SDK that it never uses.

Of `google.cloud.aiplatform`, prefect-gcp takes two names, the job service's clients, and for them it
imports the whole SDK, 50 MB more in every agent (`make bench` prints both). While prefect-gcp is
imported here, a stand-in for `google.cloud.aiplatform.gapic` offers the same two classes from where
the SDK has them. It is gone again when this module has been imported: whoever imports
`google.cloud.aiplatform` afterwards gets the SDK itself, and all of prefect-gcp works with the real
classes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from prefect_vertex_launch.vertex.client import JobServiceAsyncClient, JobServiceClient

_SDK = "google.cloud.aiplatform"
_GAPIC = f"{_SDK}.gapic"


class _StandIn(ModuleType):
    """A module that hands every name it does not have itself over to the real one."""

    def __getattr__(self, name: str) -> object:
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _remove_stand_ins() -> None:
    for name in (_SDK, _GAPIC):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


@contextmanager
def _job_service_alone() -> Iterator[None]:
    """Offer the job service's clients as `google.cloud.aiplatform.gapic`, if the SDK is not there yet."""
    if _SDK not in sys.modules:
        gapic = _StandIn(_GAPIC)
        vars(gapic).update(
            JobServiceAsyncClient=JobServiceAsyncClient,
            JobServiceClient=JobServiceClient,
            __path__=[],  # every `from … import` asks for it; it must not bring the SDK in
        )
        sys.modules.update({_SDK: _StandIn(_SDK), _GAPIC: gapic})
    try:
        yield
    finally:
        _remove_stand_ins()


with _job_service_alone():
    from prefect_gcp.credentials import GcpCredentials

__all__ = ["GcpCredentials"]
