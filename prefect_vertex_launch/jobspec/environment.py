"""The environment of a launch's containers: W&B's exact variables, in W&B's order.

Source: `LaunchProject.get_env_vars_dict` of the `wandb` package. Vertex AI expands `$(NAME)` in the
values of variables, so what the launch itself sets is written such that it arrives as it is. Its
documentation of `EnvVar.value` names `$$(NAME)` as the escape; the rest of the rule is that of
Kubernetes, from which it comes: `$$` stands for one `$` wherever it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prefect_vertex_launch.jobspec.bootstrap import API_KEY_VARIABLE, SECRET_VARIABLE
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.job_source import CODE_VARIABLE
from prefect_vertex_launch.jobspec.run_spec import RunSpec

# W&B's limit for one variable on every resource but SageMaker.
MAX_VALUE_CHARACTERS: Final = 32_670


_BEGINS_SOMETHING: Final = re.compile(r"\${2,}|\$(?=\()")
# What makes a process the W&B run of the launch. Two that have it write into each other's run.
_OF_THE_RUN: Final = frozenset({"WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_LAUNCH_TRACE_ID"})
RUN_GROUP: Final = "WANDB_RUN_GROUP"


def launch_environment(
    run_spec: RunSpec, context: LaunchContext, *, may_start_again: bool = False
) -> dict[str, str]:
    """Return the variables that the launch's run gets, in order.

    `may_start_again` if Vertex AI itself may start the container once more within the same job.
    """
    resumes = bool(run_spec.resume_count) or context.attempt > 1 or may_start_again
    is_key_of_author = context.api_key_of_author and context.api_key_secret is None
    texts: dict[str, str | None] = {
        "WANDB_BASE_URL": context.base_url,
        API_KEY_VARIABLE: None if context.api_key_secret else context.api_key.get_secret_value(),
        SECRET_VARIABLE: context.api_key_secret,
        "WANDB_PROJECT": run_spec.project,
        "WANDB_ENTITY": run_spec.entity,
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": context.run_id,
        "WANDB_DOCKER": context.image_uri,
        "WANDB_NAME": run_spec.run_name,
        "WANDB_USERNAME": None if is_key_of_author else run_spec.author,
        "WANDB_SWEEP_ID": run_spec.sweep_id,
        "WANDB_RESUME": "allow" if resumes else None,
        "WANDB_LAUNCH_QUEUE_NAME": context.queue.queue,
        "WANDB_LAUNCH_QUEUE_ENTITY": context.queue.entity,
        "WANDB_LAUNCH_TRACE_ID": context.item_id,
    }
    overrides = run_spec.overrides
    artifacts = ({"_wandb_job": run_spec.job} if run_spec.job else {}) | dict(overrides.artifacts)
    return {
        **{name: literal_text(text) for name, text in texts.items() if text is not None},
        **_in_chunks("WANDB_CONFIG", literal_json(overrides.run_config)),
        **_in_chunks("WANDB_LAUNCH_FILE_OVERRIDES", literal_json(overrides.files)),
        "WANDB_ARTIFACTS": literal_json(artifacts),
        **({CODE_VARIABLE: literal_json(context.code.to_json())} if context.code else {}),
    }


def companion_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a replica beside the run's: a run that it opens is its own, in one group."""
    kept = {name: value for name, value in environment.items() if name not in _OF_THE_RUN}
    return {**kept, RUN_GROUP: environment["WANDB_RUN_ID"]}


def literal_text(text: str, following: str = "") -> str:
    """Return `text` such that it arrives as it is when `following` comes after it in the same value.

    A single dollar sign that begins nothing stays single: it is right by every reading of the rule.
    """
    literal = _BEGINS_SOMETHING.sub(lambda dollars: dollars[0] * 2, text)
    ends_in_one = text.endswith("$") and not text.endswith("$$")
    return f"{literal}$" if ends_in_one and following.startswith(("$", "(")) else literal


def join_literally(parts: Sequence[str], brought: Sequence[bool]) -> str:
    """Return a variable's value in which what macros have brought in begins no `$(NAME)`.

    What the queue itself wrote keeps its meaning, but its last dollar sign is one if a macro follows:
    in `$${run_name}` it must not begin a reference that the run's name goes on with.
    """
    texts: list[str] = []  # last to first
    following = ""
    is_before_macro = False
    for text, is_brought in zip(reversed(parts), reversed(brought), strict=True):
        joined = text
        if is_brought:
            joined = literal_text(text, following)
        elif is_before_macro and following in {"$", "("}:
            is_odd = (len(text) - len(text.rstrip("$"))) % 2
            joined += "$" * is_odd
        texts.append(joined)
        following = joined[:1] or following
        is_before_macro = is_brought
    return "".join(reversed(texts))


def literal_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    r"""Return `value` as JSON in which nothing can be taken for `$(NAME)` or its escape.

    A dollar sign can only stand inside of a JSON string, where `\u0024` means the same; so the text
    is right for every reader of JSON, whatever the platform does to dollar signs.
    """
    text = json.dumps(value)
    return text.replace("$", "\\u0024") if "$(" in text or "$$" in text else text


def _in_chunks(name: str, text: str) -> dict[str, str]:
    if len(text) <= MAX_VALUE_CHARACTERS:
        return {name: text}
    starts = range(0, len(text), MAX_VALUE_CHARACTERS)
    return {f"{name}_{i}": text[start : start + MAX_VALUE_CHARACTERS] for i, start in enumerate(starts)}
