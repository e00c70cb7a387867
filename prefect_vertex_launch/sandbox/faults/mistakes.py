"""What is wrong with a fault that somebody asks for: all of it, each with what was probably meant."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import grpc
from pydantic_core import ErrorDetails

from prefect_vertex_launch.core.spelling import right_spelling
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.sandbox.faults.kinds import (
    ANY,
    AT_VERTEX,
    AT_WANDB,
    CALLS,
    FIELDS,
    NEEDED,
    RPCS,
    What,
)
from prefect_vertex_launch.sandbox.vertex.refusal import STATUSES
from prefect_vertex_launch.sandbox.wandb.graphql.operations import fits, near_miss

# The field, empty for the whole, and what is wrong.
Mistake = tuple[str, str]
_CODES: Final = tuple(code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK)
_STATE: Final = "JOB_STATE_"
# gRPC sends it in the header of an answer, twice with a RetryInfo, and a client takes 8 KiB of that.
_MAX_MESSAGE_BYTES: Final = 3000


def plainly(errors: Sequence[ErrorDetails], names: Collection[str]) -> list[Mistake]:
    """Return pydantic's errors about single fields, `names`, with hints; one for each field."""
    found: dict[str, str] = {}
    for error in errors:
        name = ".".join(map(str, error["loc"][:1]))
        if error["type"] == "extra_forbidden":
            meant = right_spelling(name, names)
            found[name] = "there is no such field" + (f"; did you mean {meant!r}?" if meant else "")
        elif error["type"] in {"enum", "literal_error"} and isinstance(error["input"], str):
            known = list(What) if name == "what" else ["wandb", "vertex"]
            found[name] = _misspelt(error["input"], known)
        elif name == "state":  # pydantic has an error for each of its types
            found[name] = "it is a job state by its name or its number"
        else:
            found[name] = error["msg"]
    return list(found.items())


def mistakes(given: Mapping[str, Any]) -> list[Mistake]:
    """Return why a fault could never happen whose fields, those that were given, are fine by themselves."""
    server, what = given["server"], given["what"]
    if what not in (AT_WANDB if server == "wandb" else AT_VERTEX):
        owner = "W&B" if server == "wandb" else "Vertex AI"
        return [("what", f"{what.value!r} is not a fault of {owner}'s")]
    return [*_field_mistakes(given), *_operation_mistakes(given), *_value_mistakes(given)]


def _field_mistakes(given: Mapping[str, Any]) -> Iterator[Mistake]:
    server, what = given["server"], given["what"]
    own = FIELDS.get(what, frozenset[str]()) - ({"code"} if server == "wandb" else frozenset())
    for name in given:
        if what is What.DOWN and name in CALLS:
            yield name, "a server that is down is so for every call, until it is back"
        elif name not in {"server", "what", *CALLS, *own}:
            yield name, f"{what.value!r} does not use it" + (" at W&B" if name == "code" else "")
    needed = [name for name in NEEDED.get(what, ()) if name in own]
    if needed and not any(name in given for name in needed):
        yield "what", f"{what.value!r} needs {' or '.join(needed)}"
    if {"run_spec", "size_bytes"} <= given.keys():
        yield "size_bytes", "it cannot be used together with 'run_spec'"
    if what is What.STATE and "message" in given and "code" not in given:
        yield "message", "it needs a 'code', which a job's error has"


def _operation_mistakes(given: Mapping[str, Any]) -> Iterator[Mistake]:
    what, operation = given["what"], given.get("operation", ANY)
    if operation == ANY or what is What.DOWN:
        return
    if given["server"] == "vertex":
        known = AT_VERTEX[what]
        if operation not in known:
            yield "operation", f"{operation!r} cannot be used here; {_misspelt(operation, known)}"
    elif operation in RPCS:
        yield "operation", f"{operation!r} is an operation of Vertex AI's"
    elif meant := near_miss(operation):
        yield "operation", f"W&B's clients have no {operation!r}; did you mean {meant!r}?"
    elif not fits(what, operation):
        yield "operation", f"{operation!r} cannot have {what.value!r}"


def _value_mistakes(given: Mapping[str, Any]) -> Iterator[Mistake]:
    code, state, status = given.get("code"), given.get("state"), given.get("status")
    if code is not None and code not in _CODES:
        yield "code", f"{code!r} cannot be used here; {_misspelt(code, _CODES)}"
    if isinstance(state, str) and state not in JobState.__members__:
        yield "state", f"{state!r} cannot be used here; {_misspelt_state(state)}"
    elif isinstance(state, int) and not 0 <= state < 2**31:
        yield "state", "a state's number is from 0 to 2147483647"
    if given["server"] == "vertex" and status is not None and status not in STATUSES:
        yield "status", f"{str(status)!r} cannot be used here; there are: {', '.join(map(str, STATUSES))}"
    if _size_in_grpc(given.get("message", "")) > _MAX_MESSAGE_BYTES:
        yield "message", f"it is longer than {_MAX_MESSAGE_BYTES} bytes, in which gRPC sends é as six"


def _misspelt(name: str, known: Collection[str]) -> str:
    meant = right_spelling(name, known)
    return f"did you mean {str(meant)!r}?" if meant else f"there are: {', '.join(known)}"


def _misspelt_state(name: str) -> str:
    by_short_name = {full.removeprefix(_STATE): full for full in JobState.__members__}
    meant = right_spelling(name, by_short_name)
    return f"did you mean {by_short_name[meant]!r}?" if meant else _misspelt(name, JobState.__members__)


def _size_in_grpc(text: str) -> int:
    """Return how many bytes a status message has: all but printable ASCII is sent as %XX."""
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode())
