"""Being denied what every launch needs, which is no fault of the item."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect_vertex_launch.core.errors import Permanent, PermissionDenied, Transient


@contextlib.contextmanager
def denial_passes(*also: type[Permanent]) -> Iterator[None]:
    """Let a launch wait while we are denied something: raise Transient for PermissionDenied and `also`."""
    try:
        yield
    except (PermissionDenied, *also) as error:
        raise Transient(str(error)) from error
