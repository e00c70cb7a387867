"""A CustomJob for people's eyes: the same as JSON, without its secrets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from typing import Any, Final

from google.protobuf import json_format

from prefect_vertex_launch.core.json_value import is_list, is_object
from prefect_vertex_launch.core.secrets import MASK, MIN_SECRET_CHARACTERS, is_secret_name
from prefect_vertex_launch.core.vertex_types import CustomJob

# Secrets times characters of a job: about half a second for the worst of them. A hundred secrets in a job of
# 480 KiB are below it.
_MAX_COMPARED: Final = 50_000_000


def redacted_job(job: CustomJob, secrets: Iterable[str]) -> dict[str, Any]:
    """Return the job as JSON with snake_case names.

    Values of variables with a secret's name are masked, and those values and `secrets` also wherever
    else they occur, in an argument for instance. Where there is too much to look for, every text is masked.
    """
    kind: Any = CustomJob
    view = json_format.MessageToDict(kind.pb(job), preserving_proto_field_name=True)
    hidden = set(secrets)
    for variable in _variables(view):
        if is_secret_name(variable.get("name", "")):
            hidden.add(variable.get("value", ""))
            variable["value"] = MASK
    # All texts at once: a job may have a hundred thousand, and as many secrets as it has variables.
    # None of them holds a NUL, which no field of a job takes.
    whole = "\0".join(_texts(view, []))
    if len(hidden) * len(whole) > _MAX_COMPARED:
        return _masked(view, repeat(MASK))
    return _masked(view, iter(_without(whole, hidden).split("\0")))


def _without(text: str, secrets: Iterable[str]) -> str:
    # In a job they stand as they are: nobody has quoted or cut them.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_SECRET_CHARACTERS and "\0" not in secret:
            text = text.replace(secret, MASK)
    return text


def _variables(view: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for pool in view.get("job_spec", {}).get("worker_pool_specs", ()):
        for task in ("container_spec", "python_package_spec"):
            yield from pool.get(task, {}).get("env", ())


def _texts(value: Any, found: list[str]) -> list[str]:
    """Add every text of the view to `found`, the names of fields apart, in order; return `found`."""
    if isinstance(value, str):
        found.append(value)
    elif is_list(value) and _are_texts(value):
        found += value
    elif is_object(value) or is_list(value):
        for member in value.values() if is_object(value) else value:
            _texts(member, found)
    return found


def _masked(value: Any, masked: Iterator[str]) -> Any:
    """Return the view with its texts replaced by those of `masked`, in order."""
    if is_object(value):
        return {key: _masked(item, masked) for key, item in value.items()}
    if is_list(value):
        if _are_texts(value):
            return list(islice(masked, len(value)))
        return [_masked(item, masked) for item in value]
    return next(masked) if isinstance(value, str) else value


def _are_texts(members: list[Any]) -> bool:
    """Tell whether all are texts. There may be a hundred thousand: they are not looked at one by one."""
    return set(map(type, members)) == {str}
