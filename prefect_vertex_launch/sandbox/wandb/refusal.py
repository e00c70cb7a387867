"""How the W&B backend of the sandbox says no."""

from __future__ import annotations

from typing import Any

from prefect_vertex_launch.sandbox.json_text import read_json


class WandbRefusal(Exception):
    """A request that W&B would not carry out.

    `http_status` is the status of the whole answer. W&B's clients give up at once on 400, 401, 403,
    404 and 409, and try again for minutes on 5xx, so every refusal here is a 4xx.
    """

    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.message = message


def parse_json(text: str, *, what: str) -> Any:
    """Return the value of a JSON document that a client sent inside a string argument.

    Raises:
        WandbRefusal: 400, if it is not JSON or nested too deeply.
    """
    try:
        return read_json(text)
    except ValueError as error:
        raise WandbRefusal(400, f"{what} is not valid JSON: {error}") from error


def parse_json_object(text: str, *, what: str) -> dict[str, Any]:
    """Return a JSON object that a client sent inside a string argument.

    Raises:
        WandbRefusal: 400, if it is not JSON or not an object.
    """
    value = parse_json(text, what=what)
    if not isinstance(value, dict):
        raise WandbRefusal(400, f"{what} must be a JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]  # keys of a JSON object are str
