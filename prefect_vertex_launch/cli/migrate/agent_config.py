"""The configuration of W&B's launch agent, and what becomes of each of its fields here.

Source of the fields: `AgentConfig` in `wandb/sdk/launch/agent/config.py`, `resolve_agent_config` in
`wandb/sdk/launch/_launch.py` for defaults and precedence, and wandb's builders and environments for
what they read beside the model. Like W&B's agent, this takes the file first and its environment over
it; unlike the agent it says everything that is wrong at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_vertex_launch.cli.migrate.migration import DEFAULT_STOP_SECONDS, UNLIMITED, Fate, Migration, Row
from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_list, is_object, json_problems, kind_of, shown
from prefect_vertex_launch.core.shared_limit import shared_limit_name
from prefect_vertex_launch.core.spelling import right_spelling

DEFAULT_QUEUE: Final = "default"
# W&B takes no longer names for its queues.
_MAX_QUEUE_NAME: Final = 64
_WHOLE: Final = "launch-config.yaml"
_KNOWN: Final = (
    "queues", "queue", "entity", "max_jobs", "max_schedulers", "secure_mode", "registry", "environment",
    "builder", "verbosity", "stopped_run_timeout",
)  # fmt: skip
_NOT_BUILT: Final = "images are neither built nor pushed here"
_KANIKO: Final = f"it is kaniko's, and {_NOT_BUILT}"
_REGISTRY: Final[Mapping[str, str]] = {
    "type": f"{_NOT_BUILT}; a launch names its image in full",
    "uri": f"{_NOT_BUILT}; a launch names its image in full",
    "repository": _NOT_BUILT,
    "image-name": _NOT_BUILT,
    "project": _NOT_BUILT,
    "region": _NOT_BUILT,
}
_BUILDER: Final[Mapping[str, str]] = {
    "destination": f"{_NOT_BUILT}; a launch names its image in full",
    "platform": f"{_NOT_BUILT}; build for linux/amd64, which Vertex AI's machines run",
    "build-context-store": _KANIKO,
    "build-job-name": _KANIKO,
    "secret-name": _KANIKO,
    "secret-key": _KANIKO,
    "kaniko-image": _KANIKO,
    "kaniko-config": _KANIKO,
}
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "environment.type": ("gcp", "aws", "azure"),
    "registry.type": ("ecr", "acr", "gcr"),
    "builder.type": ("docker", "kaniko", "noop"),
    "builder.platform": ("linux/amd64", "linux/arm64"),
}


def read_agent_config(config: object, environ: Mapping[str, str]) -> Migration:
    """Return what becomes of an agent's configuration.

    Args:
        config: What its YAML file holds, any value; None for an empty file.
        environ: The agent's environment; of its secrets only whether they are set is told.
    """
    findings = Findings()
    if problems := json_problems(config, where=_WHOLE):
        return Migration(problems=problems)
    if config is None:
        config = {}
    if not is_object(config):
        findings.expected(_WHOLE, "a mapping of fields", config, "Start it with entity: and queues:.")
        return Migration(problems=tuple(findings.problems))
    return _Reader(config, environ, findings).migration()


@dataclass(slots=True)
class _Reader:
    """One configuration being read, field by field, in the order of the report."""

    config: dict[str, Any]
    environ: Mapping[str, str]
    findings: Findings
    rows: list[Row] = field(default_factory=list[Row])

    def migration(self) -> Migration:
        entity = self._entity()
        queues = self._queues()
        max_jobs = self._max_jobs(len(queues))
        max_schedulers = self._max_schedulers(len(queues))
        secure_mode = self._secure_mode()
        stop_seconds = self._stop_seconds()
        log_level = self._log_level()
        location = self._location()
        self._no_meaning("registry", _REGISTRY)
        self._builder()
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
            rows=tuple(self.rows),
            problems=tuple(self.findings.problems),
            warnings=self.findings.warnings,
        )

    def _row(self, key: str, value: str, fate: Fate, becomes: str) -> None:
        self.rows.append(Row(key, value, fate, becomes))

    def _refused(self, key: str, value: object, what: str, why: str, fix: str) -> None:
        self.findings.refuse(key, what, why, fix)
        self._row(key, _value_text(value, "not set"), Fate.CANNOT_MOVE, f"{what}. {fix}")

    def _overridden(self, key: str, variable: str) -> tuple[str, Any]:
        """Return the name and the value of what counts: the variable if it is set, else the field."""
        if not self.environ.get(variable):
            return key, self.config.get(key)
        if self.config.get(key) is not None:
            self._row(
                key, _value_text(self.config[key], "not set"), Fate.NO_MEANING, f"{variable} overrides it"
            )
        return variable, self.environ[variable]

    def _text(self, key: str, value: Any, fix: str = "") -> str | None:
        """Return a text, None for null; anything else is a problem."""
        if value is None or isinstance(value, str):
            return value
        self.findings.expected(key, "a text", value, fix)
        self._row(key, kind_of(value), Fate.CANNOT_MOVE, "it is not a text")
        return None

    def _integer(self, key: str, value: Any, default: int, *, minimum: int) -> int:
        """Return a number as W&B's agent takes it: texts of digits and 4.0 are numbers as well."""
        number = default if value is None else _as_integer(value)
        if number is None:
            self._refused(
                key,
                value,
                f"expected a whole number, got {shown(value)}",
                "",
                "Write a number without quotes.",
            )
            return default
        if number < minimum:
            no_limit = ", or -1 for no limit" if minimum == UNLIMITED else ""
            self._refused(
                key,
                value,
                f"{number} is negative",
                "W&B's agent refuses it, too",
                f"Write 1 or more{no_limit}.",
            )
            return default
        return number

    def _entity(self) -> str | None:
        key, value = self._overridden("entity", "WANDB_ENTITY")
        entity = self._text(key, value) or None
        if entity:
            self._row(key, entity, Fate.BLOCK, "entity of every block")
        elif value is None or value == "":
            self._row(key, "not set", Fate.BLOCK, "entity of every block: the default one of the API key")
        return entity

    def _queues(self) -> tuple[str, ...]:
        given = self.config.get("queues", [])
        if not is_list(given):
            fix = f"Write queues: [{shown(given)[1:-1]}]." if isinstance(given, str) else ""
            self.findings.expected("queues", "a list of texts", given, fix)
            self._row("queues", kind_of(given), Fate.CANNOT_MOVE, "it is not a list of texts")
            return ()
        names = {
            name: None for index, name in enumerate(given) if self._queue_name(at("queues", index), name)
        }
        if len(names) < len(given) and not self.findings.has_refused("queues"):
            self.findings.warn("queues", "a queue is named twice; it gets one block")
        self._single_queue(names)
        if not given and not names:
            names[DEFAULT_QUEUE] = None
            self._row(
                "queues", "none", Fate.BLOCK, "queue of the block: W&B's agent served the one called default"
            )
        elif names:
            self._row("queues", ", ".join(names), Fate.BLOCK, "queue of a block of its own for each of them")
        return tuple(names)

    def _queue_name(self, path: str, name: Any) -> bool:
        if not isinstance(name, str):
            self.findings.expected(path, "a text", name, "Write the queue's name in quotes.")
            self._row(path, kind_of(name), Fate.CANNOT_MOVE, "it is not a text")
        elif not 1 <= len(name) <= _MAX_QUEUE_NAME:
            fix = "Write the queue's name."
            self._refused(path, name, f"{len(name)} characters", "W&B's queues have names of 1 to 64", fix)
        else:
            return True
        return False

    def _single_queue(self, names: dict[str, None]) -> None:
        name = self.config.get("queue")
        if name is None or not self._queue_name("queue", name):
            return
        names[name] = None
        self._row(
            "queue", name, Fate.BLOCK, "queue of a block; today's agents refuse the key, queues takes it"
        )

    def _max_jobs(self, queue_count: int) -> int:
        key, value = self._overridden("max_jobs", "WANDB_LAUNCH_MAX_JOBS")
        text = _value_text(value, "1, the default")
        count = self._integer(key, value, 1, minimum=UNLIMITED)
        if self.findings.is_refused(key):
            return count
        if count == 0:
            self._refused(
                key, value, "0 jobs at once", "nothing would ever run", "Write 1 or more, or -1 for no limit."
            )
        elif count == UNLIMITED:
            self.findings.warn(key, "no limit: what runs at once is then bounded by Vertex AI's quotas alone")
            self._row(key, text, Fate.BLOCK, "max_jobs -1: no limit but Vertex AI's quotas")
        elif queue_count > 1:
            self._row(
                key,
                text,
                Fate.LIMIT,
                f"{shared_limit_name('ENTITY')}, {count} for all {queue_count} queues together and for every "
                "agent; the blocks name it in shared_limits and have max_jobs -1",
            )
        else:
            self._row(key, text, Fate.LIMIT, f"max_jobs {count} of the block, which counts for every agent")
        return count

    def _max_schedulers(self, queue_count: int) -> int:
        value = self.config.get("max_schedulers")
        count = self._integer("max_schedulers", value, 1, minimum=UNLIMITED)
        if not self.findings.is_refused("max_schedulers"):
            each = "of each block: it counts for each queue, not for all together" if queue_count > 1 else ""
            becomes = f"max_schedulers {count} {each or 'of the block'}"
            self._row("max_schedulers", _value_text(value, "1, the default"), Fate.BLOCK, becomes)
        return count

    def _secure_mode(self) -> bool:
        value = self.config.get("secure_mode")
        if value is not None and not (isinstance(value, int) and value in {0, 1}):
            self._refused(
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
            self.findings.warn(
                "secure_mode",
                "W&B's agent locked only the entry point of a launch; here what has no allowed_… list in the "
                "block is locked to the block's own spec and run: fill in either before you start, or every "
                "launch is refused",
            )
        else:
            becomes = "secure_mode false of every block"
        self._row("secure_mode", _value_text(value, "false, the default"), Fate.BLOCK, becomes)
        return bool(value)

    def _stop_seconds(self) -> float:
        key = "stopped_run_timeout"
        value = self.config.get(key)
        seconds = self._integer(key, value, DEFAULT_STOP_SECONDS, minimum=0)
        if not self.findings.is_refused(key):
            becomes = f"stop_grace_seconds {seconds}: a stopped run's time to end itself"
            self._row(key, _value_text(value, "60, the default"), Fate.BLOCK, becomes)
        return float(seconds)

    def _log_level(self) -> str | None:
        value = self.config.get("verbosity")
        level = self._integer("verbosity", value, 0, minimum=0)
        if self.findings.is_refused("verbosity"):
            return None
        text = _value_text(value, "0, the default")
        if level >= 2:
            self._row("verbosity", text, Fate.DEPLOYMENT, "PREFECT_LOGGING_LEVEL=DEBUG where the agent runs")
            return "DEBUG"
        self._row(
            "verbosity",
            text,
            Fate.NO_MEANING,
            "what is under way is in the Prefect UI and in `vertex-launch status` at any time",
        )
        return None

    def _location(self) -> str | None:
        environment = self.config.get("environment")
        default = self.environ.get("GOOGLE_CLOUD_REGION") or None
        if environment is None:
            if default:
                self._row("GOOGLE_CLOUD_REGION", default, Fate.BLOCK, "location of every block")
            else:
                self._region_missing("W&B's agent asked gcloud for one")
            return default
        if default:
            self._row("GOOGLE_CLOUD_REGION", default, Fate.NO_MEANING, "environment.region counts")
        if not self._is_section("environment", environment):
            return None
        self._choice("environment.type", environment.get("type"))
        self._cloud(environment.get("type"))
        self._unknown_in("environment", ("type", "region"), environment)
        return self._region(environment)

    def _cloud(self, cloud: Any) -> None:
        key = "environment.type"
        fix = "Write type: gcp and the region of the jobs."
        if cloud == "gcp":
            self._row(key, "gcp", Fate.NO_MEANING, "there is no other cloud here")
        elif cloud is None:
            self._refused(key, None, "missing", "W&B's agent makes no environment without it", fix)
        elif not self.findings.is_refused(key):
            why = "a Vertex AI queue runs on Google Cloud"
            self._refused(key, cloud, f"{cloud} is another cloud", why, fix)

    def _region(self, environment: Mapping[str, Any]) -> str | None:
        key = "environment.region"
        region = self._text(key, environment.get("region"))
        if region:
            self._row(key, region, Fate.BLOCK, "location of every block")
        elif not self.findings.is_refused(key):
            self._region_missing("W&B's agent refuses an environment without one")
        return region or None

    def _region_missing(self, why: str) -> None:
        fix = "Write environment: {type: gcp, region: us-central1}, say, or set GOOGLE_CLOUD_REGION."
        self._refused("environment.region", None, "missing", why, fix)

    def _builder(self) -> None:
        builder = self.config.get("builder")
        if builder is None or builder == {}:
            self._row("builder", "not set", Fate.NO_MEANING, _NOT_BUILT)
            return
        if not self._is_section("builder", builder):
            return
        kind = builder.get("type")
        self._choice("builder.type", kind)
        if kind in ("docker", "kaniko"):
            self._row(
                "builder.type",
                kind,
                Fate.CANNOT_MOVE,
                f"{_NOT_BUILT}. Launches of images, of jobs that were made from images, and of code jobs "
                "with a base image go on as they are; of other code make a job with --base-image, or an "
                "image and a job of it with `wandb job create image`",
            )
            self.findings.warn("builder.type", "a launch that would need a built image is refused here")
        elif not self.findings.is_refused("builder.type"):
            self._row(
                "builder.type",
                _value_text(kind, "not set"),
                Fate.NO_MEANING,
                "nothing was built, and nothing is",
            )
        self._explain("builder", _BUILDER, builder)
        self._unknown_in("builder", ("type", *_BUILDER), builder)

    def _no_meaning(self, section: str, reasons: Mapping[str, str]) -> None:
        values = self.config.get(section)
        if values is None or values == {}:
            self._row(section, "not set", Fate.NO_MEANING, _NOT_BUILT)
        elif self._is_section(section, values):
            self._explain(section, reasons, values)
            self._unknown_in(section, reasons, values)

    def _explain(self, section: str, reasons: Mapping[str, str], values: Mapping[str, Any]) -> None:
        for name, reason in reasons.items():
            value, path = values.get(name), at(section, name)
            if value is None:
                continue
            if name != "kaniko-config":  # a piece of a Kubernetes job
                self._choice(path, value)
            if not self.findings.is_refused(path):
                self._row(path, _value_text(value, "not set"), Fate.NO_MEANING, reason)

    def _choice(self, path: str, value: Any) -> None:
        """Refuse what is no text, and a text that is none of the field's choices if it has some."""
        choices = _CHOICES.get(path, ())
        if self._text(path, value) and choices and value not in choices:
            near = right_spelling(value, choices)
            fix = f"Did you mean {near}?" if near else f"Write one of {', '.join(choices)}."
            why = "W&B's agent refuses it, too"
            self._refused(path, value, f"{shown(value)} is none of {', '.join(choices)}", why, fix)

    def _is_section(self, key: str, value: Any) -> bool:
        if is_object(value):
            return True
        self.findings.expected(key, "a mapping of fields", value)
        self._row(key, kind_of(value), Fate.CANNOT_MOVE, "it is not a mapping of fields")
        return False

    def _unknown(self) -> None:
        for key in self.config:
            if key not in _KNOWN:
                self.findings.unknown_key("", key, _KNOWN, "a launch agent's configuration")
                meant = right_spelling(key, _KNOWN)
                hint = f"did you mean {meant}?" if meant else "remove it"
                # Its value may be a secret: nobody knows what it is.
                kind = kind_of(self.config[key])
                self._row(at("", key), kind, Fate.CANNOT_MOVE, f"nobody reads it; {hint}")

    def _unknown_in(self, section: str, known: tuple[str, ...] | Mapping[str, str], values: Any) -> None:
        """Tell of what W&B's agent overlooked in silence, and so do we, but say it."""
        for name in values:
            if name in known:
                continue
            path, meant = at(section, name), right_spelling(name, known)
            hint = f"; did you mean {meant}?" if meant else ""
            if (section, name) == ("environment", "project"):
                hint = "; its project was that of its Google credentials, or name one with --project"
            self._row(path, kind_of(values[name]), Fate.NO_MEANING, f"W&B's agent did not read it{hint}")
            if meant:
                self.findings.warn(path, f"W&B's agent did not read it{hint}")

    def _start_timeout(self) -> float | None:
        key = "WANDB_LAUNCH_START_TIMEOUT"
        value = self.environ.get(key)
        if not value:
            self._row(
                key,
                "not set",
                Fate.NO_MEANING,
                "the agent's 30 minutes never ran out on Python 3.11 and later; here a start timeout is off "
                "unless the block has start_timeout_seconds",
            )
            return None
        seconds = _as_seconds(value)
        if seconds is None:
            self._refused(
                key, value, f"{shown(value)} is no number of seconds", "", "Set it to seconds, 1800 say."
            )
            return None
        if seconds <= 0 or math.isinf(seconds):
            self._row(key, value, Fate.BLOCK, "start_timeout_seconds empty: off")
            return None
        self._row(
            key,
            value,
            Fate.BLOCK,
            f"start_timeout_seconds {seconds:g}. It counts from the job's start on Vertex AI until its run "
            "calls wandb.init; the wait for machines is queueing_timeout_seconds, which is off",
        )
        return seconds

    def _other_variables(self) -> None:
        if self.environ.get("WANDB_API_KEY"):
            self._row("WANDB_API_KEY", "set", Fate.BLOCK, "api_key of the WandbCredentials block")
        if url := self.environ.get("WANDB_BASE_URL"):
            self._row("WANDB_BASE_URL", url, Fate.BLOCK, "base_url of the WandbCredentials block")
        if version := self.environ.get("WANDB_AGENT_VERSION"):
            becomes = "W&B shows prefect-vertex-launch and its version"
            self._row("WANDB_AGENT_VERSION", version, Fate.NO_MEANING, becomes)


def _value_text(value: Any, default: str) -> str:
    """Return a value as a cell of the report; `default` for one that is not there."""
    return default if value is None else shown(value).strip("'")


def _as_integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and len(value) > 20:
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _as_seconds(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return None if math.isnan(seconds) else seconds
