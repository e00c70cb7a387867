"""The numbers by which Vertex AI names the projects that requests name by their ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from prefect_vertex_launch.sandbox.vertex.refusal import invalid_argument

_PARENT: Final = re.compile(r"projects/([^/]+)/(locations/[^/]+)")


class ProjectNumbers:
    """The `numbers` of chosen ids; any other id has one that depends on nothing but the id."""

    def __init__(self, numbers: Mapping[str, str]) -> None:
        self._numbers = numbers

    def numbered(self, parent: str) -> str:
        """Return `projects/{id or number}/locations/{location}` with the project's number.

        Raises:
            VertexRefusal: 400, if it is not of this form.
        """
        match = _PARENT.fullmatch(parent)
        if match is None:
            raise invalid_argument(
                f"Invalid resource name: {parent!r} is not projects/{{project}}/locations/{{location}}."
            )
        project, location = match.groups()
        if not project.isdecimal():
            project = self._numbers.get(project) or _number_of(project)
        return f"projects/{project}/{location}"


def _number_of(project_id: str) -> str:
    """Return twelve digits, as Google's numbers have, that only depend on the id."""
    digest = hashlib.sha256(project_id.encode()).digest()
    return str(10**11 + int.from_bytes(digest[:8], "big") % (9 * 10**11))
