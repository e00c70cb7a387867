"""The arguments of `aiplatform.CustomJob(…)` and `CustomJob.run(…)` as data, and what each one may hold.

`SPEC_ARGUMENTS` and `RUN_ARGUMENTS` name every parameter of the SDK's two functions, `EXTRA_ARGUMENTS`
the fields of `CustomJobSpec` that no parameter sets; a test compares them with the installed SDK.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_list, is_object, kind_of, shown
from prefect_vertex_launch.core.labels import MAX_LABELS
from prefect_vertex_launch.core.vertex_types import PscInterfaceConfig, Scheduling, WorkerPoolSpec
from prefect_vertex_launch.jobspec.config.field_walk import FieldWalk, descriptor_of, enum_of
from prefect_vertex_launch.jobspec.config.macros import MacroText, has_macro, is_macro
from prefect_vertex_launch.jobspec.config.worker_pools import MAX_POOLS

# The largest number of seconds a protobuf Duration holds (about 10,000 years).
_MAX_SECONDS: Final = 315_576_000_000
_MAX_CALL_SECONDS: Final = 3600

POOL_DESCRIPTOR: Final = descriptor_of(WorkerPoolSpec)
PSC_DESCRIPTOR: Final = descriptor_of(PscInterfaceConfig)
STRATEGY_DESCRIPTOR: Final = enum_of(Scheduling, "strategy")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: the kind of its value, and for texts the form and an example of it.

    Kinds: text, texts, flag, seconds, call_seconds, strategy, labels, pools, psc, refused. The form of
    texts is that of each one.
    """

    kind: str
    form: re.Pattern[str] | None = None
    example: str = ""
    reason: str = ""


_BUCKET = Argument(
    "text", re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?"), "gs://my-bucket/prefix"
)
_RESOURCE_ID = Argument("text", re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"), "my-persistent-resource")
_ACCOUNT = Argument(
    # Only the first dot that may end a name is tried: to try each would take the square of the text.
    "text",
    re.compile(r"[^@\s/]+@[^@\s/][^@\s/.]*\.[^@\s/]+"),
    "trainer@my-project.iam.gserviceaccount.com",
)
_REGION = Argument("text", re.compile(r"[a-z0-9-]+"), "us-central1")
_CONTEXT_ID = r"[a-z0-9][a-z0-9-]{0,127}"
_CONTEXT = rf"(projects/[^/\s]+/locations/[^/\s]+/metadataStores/[^/\s]+/contexts/)?{_CONTEXT_ID}"

SPEC_ARGUMENTS: Final[Mapping[str, Argument]] = {
    "display_name": Argument("text"),
    "worker_pool_specs": Argument("pools"),
    "base_output_dir": _BUCKET,
    "project": Argument("text", re.compile(r"[a-z0-9][a-z0-9.:-]*"), "my-project"),
    "location": _REGION,
    "credentials": Argument(
        "refused", reason="the job is submitted with the Google credentials of the queue's block"
    ),
    "labels": Argument("labels"),
    "encryption_spec_key_name": Argument(
        "text",
        re.compile(r"projects/[^/\s]+/locations/[^/\s]+/keyRings/[^/\s]+/cryptoKeys/[^/\s]+"),
        "projects/my-project/locations/us-central1/keyRings/my-ring/cryptoKeys/my-key",
    ),
    "staging_bucket": _BUCKET,
    "persistent_resource_id": _RESOURCE_ID,
}

RUN_ARGUMENTS: Final[Mapping[str, Argument]] = {
    "service_account": _ACCOUNT,
    "network": Argument(
        "text",
        re.compile(r"projects/[^/\s]+/global/networks/[^/\s]+"),
        "projects/12345/global/networks/my-vpc",
    ),
    "timeout": Argument("seconds"),
    "restart_job_on_worker_restart": Argument("flag"),
    "enable_web_access": Argument("flag"),
    "experiment": Argument("text", re.compile(_CONTEXT), "my-experiment"),
    "experiment_run": Argument("text", re.compile(_CONTEXT), "my-run"),
    "tensorboard": Argument(
        "text",
        re.compile(r"projects/[^/\s]+/locations/[^/\s]+/tensorboards/[^/\s]+"),
        "projects/my-project/locations/us-central1/tensorboards/123",
    ),
    "sync": Argument("flag"),
    "create_request_timeout": Argument("call_seconds"),
    "disable_retries": Argument("flag"),
    "persistent_resource_id": _RESOURCE_ID,
    "scheduling_strategy": Argument("strategy"),
    "max_wait_duration": Argument("seconds"),
    "psc_interface_config": Argument("psc"),
}

# Fields of CustomJobSpec that no argument of the SDK's CustomJob reaches.
EXTRA_ARGUMENTS: Final[Mapping[str, Argument]] = {
    "reserved_ip_ranges": Argument(
        "texts", re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"), "vertex-ai-ip-range"
    ),
    "enable_dashboard_access": Argument("flag"),
    "protected_artifact_location_id": _REGION,
    "models": Argument(
        "texts",
        re.compile(r"projects/[^/\s]+/locations/[^/\s]+/models/[^/\s@]+(@[^/\s@]+)?"),
        "projects/my-project/locations/us-central1/models/123@2",
    ),
}

# W&B's documentation puts the service account under `spec`; the SDK takes it in `run`. Both work here,
# and so they do for what the SDK has in neither. A job is made of what stands in `run`.
KEPT_IN_RUN: Final = ("service_account", *EXTRA_ARGUMENTS)
EITHER_SECTION: Final = (*KEPT_IN_RUN, "persistent_resource_id")
ARGUMENTS: Final[Mapping[str, Mapping[str, Argument]]] = {
    "spec": {**SPEC_ARGUMENTS, "service_account": _ACCOUNT, **EXTRA_ARGUMENTS},
    "run": {**RUN_ARGUMENTS, **EXTRA_ARGUMENTS},
}

# Fields of CustomJobSpec and CustomJob that go by another name in the SDK's CustomJob.
OTHER_NAMES: Final = {
    "base_output_directory": "spec.base_output_dir",
    "encryption_spec": "spec.encryption_spec_key_name",
    "scheduling": "run.timeout, run.scheduling_strategy, …",
}


def check_argument(argument: Argument, value: Any, path: str, walk: FieldWalk) -> Any:
    """Return the value in the form that `CustomJob` takes; problems go to the walk's findings.

    `value` is not None. What was refused comes back as None or as something harmless of its kind.
    """
    return _CHECKS[argument.kind](argument, value, path, walk)


def refuse_unknown_argument(section: str, name: str, path: str, findings: Findings) -> None:
    """Note an argument that `section` (`spec` or `run`) does not have, and where it belongs."""
    other_section = "run" if section == "spec" else "spec"
    if name in ARGUMENTS[other_section]:
        findings.refuse(
            at(path, name),
            f"{name} is not an argument of {section}",
            fix=f"Move it to {other_section}.{name}.",
        )
    elif name in OTHER_NAMES:
        findings.refuse(
            at(path, name), f"{name} goes by another name here", fix=f"Set {OTHER_NAMES[name]} instead."
        )
    else:
        findings.unknown_key(path, name, ARGUMENTS[section], _OWNERS[section])


_OWNERS: Final = {"spec": "spec (the arguments of CustomJob)", "run": "run (the arguments of CustomJob.run)"}


def _text(argument: Argument, value: Any, path: str, walk: FieldWalk) -> Any:
    text = walk.text(value, path)
    waits = walk.macros_pending and has_macro(value)
    if not text or waits or argument.form is None or argument.form.fullmatch(text):
        return text
    if walk.findings.has_refused(path):
        return text  # for a macro in it
    fix = f"Write it like {argument.example}."
    if argument is _BUCKET and "://" not in text:
        fix = f"Write gs://{shown(text.lstrip('/'))[1:-1]}."
    walk.findings.refuse(path, f"{shown(text)} does not have the right form", fix=fix)
    return text


def _texts(argument: Argument, value: Any, path: str, walk: FieldWalk) -> list[Any]:
    if not is_list(value):
        walk.findings.expected(path, "a list of strings", value, "Put it into a list: […].")
        return []
    items = walk.not_too_many(value, path)
    for index, item in enumerate(items):
        if item == "":
            walk.findings.refuse(at(path, index), "an empty text", fix="Remove it.")
    return [_text(argument, item, at(path, index), walk) for index, item in enumerate(items)]


def _seconds(value: Any, path: str, walk: FieldWalk) -> Any:
    if isinstance(value, str) and not is_macro(value) and not isinstance(value, MacroText):
        digits = value.strip().removesuffix("s")
        example = digits if digits.isdecimal() and len(digits) < 16 else "3600"
        fix = f"Write {example}, without quotes and unit."
        walk.findings.refuse(path, f"expected whole seconds as a number, got {shown(value)}", fix=fix)
        return None
    seconds = walk.integer(value, path, bits=64, what="whole seconds as a number", example=3600)
    if isinstance(seconds, int) and not 0 <= seconds <= _MAX_SECONDS:
        walk.findings.refuse(
            path,
            f"{seconds} s is not between 0 and {_MAX_SECONDS}",
            "no other duration can be sent",
            "Write the number of seconds, such as 3600, or remove it.",
        )
    return seconds


def _call_seconds(value: Any, path: str, walk: FieldWalk) -> Any:
    if walk.macros_pending and is_macro(value):
        return value
    number = value
    if isinstance(value, MacroText):
        try:
            number = float(value[:32])
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= _MAX_CALL_SECONDS:
        got = shown(value) if isinstance(value, int | float) else kind_of(value)
        walk.findings.refuse(
            path,
            f"expected seconds as a number from more than 0 to {_MAX_CALL_SECONDS}, got {got}",
            "it is how long one request to Vertex AI may take, not the job",
            "Write a number without quotes, such as 120; the job's own limit is run.timeout.",
        )
        return None
    return number


def _labels(value: Any, path: str, walk: FieldWalk) -> dict[str, str]:
    if not is_object(value):
        walk.findings.expected(path, "an object of strings", value)
        return {}
    if len(value) > MAX_LABELS:
        walk.findings.refuse(path, f"{len(value)} labels", f"a job has at most {MAX_LABELS}", "Remove some.")
        return {}
    if "" in value:
        walk.findings.refuse(path, "a label without a name", fix="Name it or remove it.")
    return {key: walk.text(text, at(path, key)) for key, text in value.items()}


def _pools(value: Any, path: str, walk: FieldWalk) -> list[dict[str, Any]]:
    if not is_list(value):
        fix = "Put the pool into a list: [{…}]." if is_object(value) else ""
        walk.findings.expected(path, "a list of worker pools", value, fix)
        return []
    if not value:
        walk.findings.refuse(path, "empty", "a job needs at least one worker pool", "Add one.")
    if len(value) > MAX_POOLS:
        walk.findings.refuse(
            path,
            f"{len(value)} worker pools",
            f"a job has at most {MAX_POOLS}: primary, workers, parameter or reduction servers, evaluator",
            "Put replicas of the same role into one pool with a larger replica_count.",
        )
    pools = value[:MAX_POOLS]
    for index, pool in enumerate(pools):
        if pool is None:
            walk.findings.refuse(
                at(path, index), "null", "a pool that is left out is written as {}", "Write {} or remove it."
            )
    return [
        {} if pool is None else walk.message(POOL_DESCRIPTOR, pool, at(path, index))
        for index, pool in enumerate(pools)
    ]


_CHECKS: Final[Mapping[str, Callable[[Argument, Any, str, FieldWalk], Any]]] = {
    "text": _text,
    "texts": _texts,
    "flag": lambda _argument, value, path, walk: walk.boolean(value, path),
    "seconds": lambda _argument, value, path, walk: _seconds(value, path, walk),
    "call_seconds": lambda _argument, value, path, walk: _call_seconds(value, path, walk),
    "strategy": lambda _argument, value, path, walk: walk.enum(STRATEGY_DESCRIPTOR, value, path),
    "labels": lambda _argument, value, path, walk: _labels(value, path, walk),
    "pools": lambda _argument, value, path, walk: _pools(value, path, walk),
    "psc": lambda _argument, value, path, walk: walk.message(PSC_DESCRIPTOR, value, path),
    "refused": lambda argument, _value, path, walk: walk.findings.refuse(
        path, "cannot be set in a queue", argument.reason, "Remove it."
    ),
}
