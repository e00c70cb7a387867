"""The configuration of W&B's launch agent, and what becomes of each of its fields here.

Source of the fields: `AgentConfig` in `wandb/sdk/launch/agent/config.py`, `resolve_agent_config` in
`wandb/sdk/launch/_launch.py` for defaults and precedence, and wandb's builders and environments for
what they read beside the model. Like W&B's agent, this takes the file first and its environment over
it; unlike the agent it says everything that is wrong at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from prefect_vertex_launch.cli.migrate.field_report import FieldReport, value_text
from prefect_vertex_launch.cli.migrate.migration import DEFAULT_STOP_SECONDS, UNLIMITED, Fate, Migration
from prefect_vertex_launch.cli.migrate.sections import explain_builder, explain_registry, read_location
from prefect_vertex_launch.core.findings import Findings, TooManyProblems
from prefect_vertex_launch.core.json_value import at, is_list, is_object, json_problems, kind_of, shown
from prefect_vertex_launch.core.shared_limit import shared_limit_name
from prefect_vertex_launch.core.spelling import right_spelling

DEFAULT_QUEUE: Final = "default"
# The longest name that W&B takes for a queue.
_MAX_QUEUE_NAME: Final = 64
_WHOLE: Final = "launch-config.yaml"
_KNOWN: Final = (
    "queues", "queue", "entity", "max_jobs", "max_schedulers", "secure_mode", "registry", "environment",
    "builder", "verbosity", "stopped_run_timeout",
)  # fmt: skip


def read_agent_config(config: object, environ: Mapping[str, str]) -> Migration:
    """Return what becomes of an agent's configuration.

    Args:
        config: What its YAML file holds, any value; None for an empty file.
        environ: The agent's environment. Of its secrets the report says only whether they are set.
    """
    findings = Findings()
    if problems := json_problems(config, where=_WHOLE):
        return Migration(problems=problems)
    if config is None:
        config = {}
    if not is_object(config):
        findings.expected(_WHOLE, "a mapping of fields", config, "Start it with entity: and queues:.")
        return Migration(problems=tuple(findings.problems))
    try:
        return _Reader(FieldReport(config, environ, findings)).migration()
    except TooManyProblems:
        return Migration(problems=tuple(findings.problems))


class _Reader:
    """One configuration being read, field by field, in the order of the report."""

    def __init__(self, report: FieldReport) -> None:
        self._report = report
        self._config = report.config
        self._environ = report.environ
        self._findings = report.findings

    def migration(self) -> Migration:
        entity = self._entity()
        queues = self._queues()
        max_jobs = self._max_jobs(len(queues))
        max_schedulers = self._max_schedulers(len(queues))
        secure_mode = self._secure_mode()
        stop_seconds = self._stop_seconds()
        log_level = self._log_level()
        location = read_location(self._report)
        explain_registry(self._report)
        explain_builder(self._report)
        self._unknown()
        start_timeout = self._start_timeout()
        self._other_variables()
        return Migration(
            entity=entity,
            queues=queues,
            max_jobs=max_jobs,
            max_schedulers=max_schedulers,
            location=location,
            secure_mode=secure_mode,
            stop_grace_seconds=stop_seconds,
            start_timeout_seconds=start_timeout,
            log_level=log_level,
            rows=tuple(self._report.rows),
            problems=tuple(self._findings.problems),
            warnings=self._findings.warnings,
        )

    def _entity(self) -> str | None:
        key, value = self._report.overridden("entity", "WANDB_ENTITY")
        entity = self._report.text(key, value) or None
        if entity:
            self._report.row(key, entity, Fate.BLOCK, "entity of every block")
        elif value is None or value == "":
            self._report.row(
                key, "not set", Fate.BLOCK, "entity of every block: the default one of the API key"
            )
        return entity

    def _queues(self) -> tuple[str, ...]:
        given = self._config.get("queues", [])
        if not is_list(given):
            fix = f"Write queues: [{shown(given)[1:-1]}]." if isinstance(given, str) else ""
            self._findings.expected("queues", "a list of texts", given, fix)
            self._report.row("queues", kind_of(given), Fate.CANNOT_MOVE, "it is not a list of texts")
            return ()
        names = {
            name: None for index, name in enumerate(given) if self._queue_name(at("queues", index), name)
        }
        if len(names) < len(given) and not self._findings.has_refused("queues"):
            self._findings.warn("queues", "a queue is named twice; it gets one block")
        self._single_queue(names)
        if not given and not names:
            names[DEFAULT_QUEUE] = None
            self._report.row(
                "queues", "none", Fate.BLOCK, "queue of the block: W&B's agent served the one called default"
            )
        elif names:
            self._report.row(
                "queues", ", ".join(names), Fate.BLOCK, "queue of a block of its own for each of them"
            )
        return tuple(names)

    def _queue_name(self, path: str, name: Any) -> bool:
        if not isinstance(name, str):
            self._findings.expected(path, "a text", name, "Write the queue's name in quotes.")
            self._report.row(path, kind_of(name), Fate.CANNOT_MOVE, "it is not a text")
        elif not 1 <= len(name) <= _MAX_QUEUE_NAME:
            fix = "Write the queue's name."
            self._report.refuse(
                path, name, f"{len(name)} characters", "W&B's queues have names of 1 to 64", fix
            )
        else:
            return True
        return False

    def _single_queue(self, names: dict[str, None]) -> None:
        name = self._config.get("queue")
        if name is None or not self._queue_name("queue", name):
            return
        names[name] = None
        self._report.row(
            "queue", name, Fate.BLOCK, "queue of a block; today's agents refuse the key, queues takes it"
        )

    def _max_jobs(self, queue_count: int) -> int:
        key, value = self._report.overridden("max_jobs", "WANDB_LAUNCH_MAX_JOBS")
        text = value_text(value, "1, the default")
        count = self._report.integer(key, value, 1, minimum=UNLIMITED)
        if self._findings.is_refused(key):
            return count
        if count == 0:
            self._report.refuse(
                key, value, "0 jobs at once", "nothing would ever run", "Write 1 or more, or -1 for no limit."
            )
        elif count == UNLIMITED:
            self._findings.warn(
                key, "no limit: what runs at once is then bounded by Vertex AI's quotas alone"
            )
            self._report.row(key, text, Fate.BLOCK, "max_jobs -1: no limit but Vertex AI's quotas")
        elif queue_count > 1:
            self._report.row(
                key,
                text,
                Fate.LIMIT,
                f"{shared_limit_name('SERVER', 'ENTITY')}, {count} for all {queue_count} queues together "
                "and for every agent; the blocks name it in shared_limits and have max_jobs -1",
            )
        else:
            self._report.row(
                key, text, Fate.LIMIT, f"max_jobs {count} of the block, which counts for every agent"
            )
        return count

    def _max_schedulers(self, queue_count: int) -> int:
        value = self._config.get("max_schedulers")
        count = self._report.integer("max_schedulers", value, 1, minimum=UNLIMITED)
        if not self._findings.is_refused("max_schedulers"):
            each = "of each block: it counts for each queue, not for all together" if queue_count > 1 else ""
            becomes = f"max_schedulers {count} {each or 'of the block'}"
            self._report.row("max_schedulers", value_text(value, "1, the default"), Fate.BLOCK, becomes)
        return count

    def _secure_mode(self) -> bool:
        value = self._config.get("secure_mode")
        if value is not None and not (isinstance(value, int) and value in {0, 1}):
            self._report.refuse(
                "secure_mode",
                value,
                f"expected true or false, got {kind_of(value)}",
                "W&B's agent takes every text for true, also 'false'",
                "Write true or false without quotes.",
            )
            return False
        if value:
            becomes = (
                "secure_mode of every block. Here it locks image, entry point, command, service account, "
                "network and machine type: fill in the block's allowed_… lists"
            )
            self._findings.warn(
                "secure_mode",
                "W&B's agent locked only the entry point of a launch; here what has no allowed_… list in the "
                "block is locked to the block's own spec and run: fill in either before you start, or every "
                "launch is refused",
            )
        else:
            becomes = "secure_mode false of every block"
        self._report.row("secure_mode", value_text(value, "false, the default"), Fate.BLOCK, becomes)
        return bool(value)

    def _stop_seconds(self) -> float:
        key = "stopped_run_timeout"
        value = self._config.get(key)
        seconds = self._report.integer(key, value, DEFAULT_STOP_SECONDS, minimum=0)
        if not self._findings.is_refused(key):
            becomes = f"stop_grace_seconds {seconds}: a stopped run's time to end itself"
            self._report.row(key, value_text(value, "60, the default"), Fate.BLOCK, becomes)
        return float(seconds)

    def _log_level(self) -> str | None:
        value = self._config.get("verbosity")
        level = self._report.integer("verbosity", value, 0, minimum=0)
        if self._findings.is_refused("verbosity"):
            return None
        text = value_text(value, "0, the default")
        if level >= 2:
            self._report.row(
                "verbosity", text, Fate.DEPLOYMENT, "PREFECT_LOGGING_LEVEL=DEBUG where the agent runs"
            )
            return "DEBUG"
        self._report.row(
            "verbosity",
            text,
            Fate.NO_MEANING,
            "what is under way is in the Prefect UI and in `vertex-launch status` at any time",
        )
        return None

    def _unknown(self) -> None:
        for key in self._config:
            if key not in _KNOWN:
                self._findings.unknown_key("", key, _KNOWN, "a launch agent's configuration")
                meant = right_spelling(key, _KNOWN)
                hint = f"did you mean {meant}?" if meant else "remove it"
                # Its value may be a secret: nobody knows what it is.
                kind = kind_of(self._config[key])
                self._report.row(at("", key), kind, Fate.CANNOT_MOVE, f"nobody reads it; {hint}")

    def _start_timeout(self) -> float | None:
        key = "WANDB_LAUNCH_START_TIMEOUT"
        value = self._environ.get(key)
        if not value:
            self._report.row(
                key,
                "not set",
                Fate.NO_MEANING,
                "the agent's 30 minutes never ran out on Python 3.11 and later; here a start timeout is off "
                "unless the block has start_timeout_seconds",
            )
            return None
        seconds = _as_seconds(value)
        if seconds is None:
            self._report.refuse(
                key, value, f"{shown(value)} is no number of seconds", "", "Set it to seconds, 1800 say."
            )
            return None
        if seconds <= 0 or math.isinf(seconds):
            self._report.row(key, value, Fate.BLOCK, "start_timeout_seconds empty: off")
            return None
        self._report.row(
            key,
            value,
            Fate.BLOCK,
            f"start_timeout_seconds {seconds:g}. It counts from the job's start on Vertex AI until its run "
            "calls wandb.init; the wait for machines is queueing_timeout_seconds, which is off",
        )
        return seconds

    def _other_variables(self) -> None:
        if self._environ.get("WANDB_API_KEY"):
            self._report.row("WANDB_API_KEY", "set", Fate.BLOCK, "api_key of the WandbCredentials block")
        if url := self._environ.get("WANDB_BASE_URL"):
            self._report.row("WANDB_BASE_URL", url, Fate.BLOCK, "base_url of the WandbCredentials block")
        if version := self._environ.get("WANDB_AGENT_VERSION"):
            becomes = "W&B shows prefect-vertex-launch and its version"
            self._report.row("WANDB_AGENT_VERSION", version, Fate.NO_MEANING, becomes)


def _as_seconds(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return None if math.isnan(seconds) else seconds
