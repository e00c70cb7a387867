"""A W&B run spec, the payload of a run queue item, as a typed value.

`parse_run_spec` is total: any JSON becomes a RunSpec or an InvalidRunSpec that names everything that
is wrong with its path. Source of the keys: `construct_launch_spec` and `LaunchProject` of `wandb`.

The item of a sweep's scheduler is a run spec, too (scheduler_item.py). The scheduler never runs where
that item says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_vertex_launch.core.errors import InvalidRunSpec
from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import MAX_PROBLEMS, at, is_empty, is_object, json_problems, shown
from prefect_vertex_launch.core.spelling import right_spelling
from prefect_vertex_launch.jobspec.overrides import Overrides, read_overrides
from prefect_vertex_launch.jobspec.scheduler_item import fill_in_sweep, is_scheduler, is_scheduler_command

VERTEX_RESOURCES: Final = ("vertex", "gcp-vertex")
# Where W&B's own agent runs a scheduler. Here these names only say that no other place was chosen.
_SCHEDULER_RESOURCES: Final = ("local-process", "local-container")

_KNOWN: Final = frozenset({
    "_resume_count", "_wandb_api_key", "author", "builder", "docker", "entity", "git", "image_uri", "job",
    "name", "overrides", "priority", "project", "python_version", "queue_entity", "registry", "resource",
    "resource_args", "run_id", "sweep_id", "template_variables", "uri",
})  # fmt: skip
_DOCKER_KEYS: Final = ("docker_image", "user_id")
_LAUNCH_A_SWEEP: Final = "Start the sweep with `wandb launch-sweep`."
_LAUNCH_AN_IMAGE: Final = "Launch an image, or a job that was made from an image."
# What W&B's own agent builds images with. W&B writes some of these, empty, into every item.
_BUILDER_KEYS: Final[Mapping[str, str]] = {
    "builder": "images are not built here",
    "git": "code is not fetched from git here",
    "python_version": "images are not built here",
    "registry": "images are not built or pushed here",
}
_RESERVED_IN_RUN_ID: Final = frozenset(":;,#?/'")
_RESERVED_IN_PROJECT: Final = frozenset("/\\#?%:")
_SPACE: Final = re.compile(r"\s")
_JOB_PART: Final = re.compile(r"[^/\s:]+")
_BASE36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A run that can be launched: exactly one of `image_uri` and `job` is set.

    `resource` is the name under which `resource_args` stand, `vertex` or `gcp-vertex`. `job` is
    `entity/project/name:alias`. The project's name is kept as the user wrote it. `sweep_id` is the
    sweep of which the run is a trial.

    A sweep scheduler has `scheduled_sweep`, the id of the sweep that it schedules, and may have both
    of `image_uri` and `job`, or neither.
    """

    entity: str
    project: str
    run_name: str | None
    run_id: str | None
    author: str | None
    resource: str
    resource_args: object | None = field(repr=False)
    image_uri: str | None
    job: str | None
    overrides: Overrides
    sweep_id: str | None = None
    resume_count: int = 0
    warnings: tuple[str, ...] = ()
    scheduled_sweep: str | None = None

    @property
    def is_scheduler(self) -> bool:
        """Whether the run is the scheduler of a sweep."""
        return self.scheduled_sweep is not None


def derive_run_id(item_id: str) -> str:
    """Return the run id of an item that brings none: 8 characters [a-z0-9], always the same ones."""
    number = int.from_bytes(hashlib.sha256(f"run:{item_id}".encode("utf-8", "surrogatepass")).digest())
    characters: list[str] = []
    for _ in range(8):
        number, digit = divmod(number, 36)
        characters.append(_BASE36[digit])
    return "".join(characters)


def parse_run_spec(payload: object, *, item_id: str) -> RunSpec:
    """Return the run that a run queue item asks for.

    Args:
        payload: The item's run spec, any JSON.
        item_id: Names the item in errors about the payload as a whole.

    Raises InvalidRunSpec with every problem and its path in the payload.
    """
    whole = f"run spec of item {shown(item_id)[1:-1]}"
    if problems := json_problems(payload, where=whole):
        raise InvalidRunSpec(problems)
    findings = Findings()
    if not is_object(payload):
        findings.expected(whole, "an object", payload)
        raise InvalidRunSpec(findings.problems)
    with findings.refusing(InvalidRunSpec):
        return _Reader(payload, findings).run_spec()


class _Reader:
    """One payload being read, key by key."""

    def __init__(self, payload: dict[str, Any], findings: Findings) -> None:
        self._is_scheduler = is_scheduler(payload)
        self._payload, self._sweep = fill_in_sweep(payload) if self._is_scheduler else (payload, None)
        self._findings = findings

    def run_spec(self) -> RunSpec:
        self._refuse_unknown()
        self._refuse_building()
        self._refuse_uri()
        entity = self._name("entity")
        project = self._name("project")
        resource, resource_args = self._resource()
        image_uri, job = self._source(entity, project)
        return RunSpec(
            entity=entity,
            project=project,
            run_name=self._text("name"),
            run_id=self._run_id(),
            author=self._text("author"),
            resource=resource,
            resource_args=resource_args,
            image_uri=image_uri,
            job=job,
            overrides=read_overrides(
                self._payload.get("overrides"),
                is_of_job=self._payload.get("job") is not None,
                findings=self._findings,
            ),
            sweep_id=self._text("sweep_id"),
            resume_count=self._resume_count(),
            warnings=self._findings.warnings,
            scheduled_sweep=self._sweep,
        )

    def _refuse_unknown(self) -> None:
        # Keys that begin with an underscore are the W&B server's own.
        unknown = [key for key in self._payload if key not in _KNOWN and not key.startswith("_")]
        if len(unknown) > MAX_PROBLEMS:
            more = f"{len(unknown) - MAX_PROBLEMS} more keys that are not known here; they have no effect"
            self._findings.warn("run spec", more)
        for key in unknown[:MAX_PROBLEMS]:
            if right_spelling(key, _KNOWN):
                self._findings.unknown_key("", key, _KNOWN, "a run spec")
            else:
                self._findings.warn(at("", key), "not known here; it has no effect")
        if self._payload.get("template_variables"):
            self._findings.warn(
                "template_variables", "W&B fills them in when a run is pushed; these had no effect"
            )

    def _refuse_building(self) -> None:
        for key, why in _BUILDER_KEYS.items():
            if is_empty(self._payload.get(key)):
                continue
            if self._is_scheduler and key == "registry":
                self._findings.warn(key, "has no effect: it is for the images of the sweep's trials")
            else:
                self._findings.refuse(key, "cannot be used", why, _LAUNCH_AN_IMAGE)

    def _refuse_uri(self) -> None:
        if not self._is_scheduler:
            if self._text("uri"):
                self._findings.refuse("uri", "cannot be used", "code is not fetched here", _LAUNCH_AN_IMAGE)
        elif self._sweep is None:
            self._findings.refuse(
                "run_id",
                "does not name the sweep",
                "the run id of a sweep's scheduler is that of its sweep",
                _LAUNCH_A_SWEEP,
            )

    def _text(self, key: str) -> str | None:
        """Return the string under `key`; None if it is missing, null or empty."""
        return _text_at(self._payload.get(key), key, self._findings)

    def _name(self, key: str) -> str:
        text = self._text(key)
        if text is None:
            self._findings.refuse(key, "missing", "a run belongs to a project of an entity", f"Pass --{key}.")
            return ""
        found = sorted(_RESERVED_IN_PROJECT.intersection(text))
        if found or len(text) > 128:
            what = f"cannot hold {' '.join(found)}" if found else f"{len(text)} characters; 128 are allowed"
            self._findings.refuse(
                key,
                what,
                f"W&B does not take such a name for an {key}"
                if key == "entity"
                else f"W&B does not take such a name for a {key}",
                f"Pass --{key} with the name as W&B shows it.",
            )
        return text

    def _run_id(self) -> str | None:
        run_id = self._text("run_id")
        if run_id is None:
            return None
        found = sorted(_RESERVED_IN_RUN_ID.intersection(run_id))
        if found:
            self._refuse_run_id(f"cannot hold {' '.join(found)}", "W&B refuses such a run id")
        elif run_id != run_id.strip():
            self._refuse_run_id("starts or ends with a space", "W&B refuses such a run id")
        elif len(run_id) > 128:
            self._refuse_run_id(f"{len(run_id)} characters", "W&B takes at most 128")
        return run_id

    def _refuse_run_id(self, what: str, why: str) -> None:
        self._findings.refuse("run_id", what, why, "Correct it, or leave it out: then it is made here.")

    def _resume_count(self) -> int:
        count = self._payload.get("_resume_count")
        if count is None:
            return 0
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            self._findings.expected("_resume_count", "a whole number that is not negative", count)
            return 0
        return count

    def _resource(self) -> tuple[str, object | None]:
        declared = self._text("resource")
        if self._is_scheduler and declared in _SCHEDULER_RESOURCES:
            declared = None
        if declared is not None and declared not in VERTEX_RESOURCES:
            self._findings.refuse(
                "resource",
                f"{shown(declared)} is not a Vertex AI resource",
                "this launcher submits to Vertex AI only and never runs anything on its own host",
                "Push the run to a Vertex queue, or set the resource to gcp-vertex.",
            )
            return declared, None
        groups = self._payload.get("resource_args")
        if groups is not None and not is_object(groups):
            self._findings.expected("resource_args", "an object", groups)
        if not is_object(groups):
            return declared or VERTEX_RESOURCES[-1], None
        for key in (key for key in groups if key not in VERTEX_RESOURCES):
            if self._is_scheduler:
                self._findings.warn(at("resource_args", key), "has no effect on a job on Vertex AI")
                continue
            fix = "Put spec and run under gcp-vertex." if key in {"spec", "run"} else "Remove them."
            self._findings.refuse(
                at("resource_args", key), "arguments of another resource", "this is a Vertex AI queue", fix
            )
        present = [name for name in VERTEX_RESOURCES if groups.get(name) is not None]
        if len(present) > 1:
            self._findings.warn("resource_args.gcp-vertex", "has no effect beside resource_args.vertex")
        resource = present[0] if present else declared or VERTEX_RESOURCES[-1]
        return resource, groups.get(resource)

    def _source(self, entity: str, project: str) -> tuple[str | None, str | None]:
        image_uri, job = self._image_uri(), self._job(entity, project)
        if self._is_scheduler:
            self._require_scheduler(image_uri or job)
        elif (image_uri is None) == (job is None) and not self._findings.has_refused(
            "docker", "job", "image_uri", "uri"
        ):
            what = "neither an image nor a job" if job is None else "both an image and a job"
            self._findings.refuse(
                "docker.docker_image, job",
                what,
                "a launch runs exactly one of them",
                "Give one of them.",
            )
        return image_uri, job

    def _require_scheduler(self, source: str | None) -> None:
        overrides = self._payload.get("overrides")
        entry_point = overrides.get("entry_point") if is_object(overrides) else None
        if source is None and not is_scheduler_command(entry_point):
            self._findings.refuse(
                "overrides.entry_point",
                "is not `wandb scheduler <sweep>`",
                "without an image or a job of its own a scheduler is that command",
                _LAUNCH_A_SWEEP,
            )

    def _image_uri(self) -> str | None:
        docker = self._payload.get("docker")
        if docker is not None and not is_object(docker):
            self._findings.expected("docker", "an object", docker)
        fields: dict[str, Any] = docker if is_object(docker) else {}
        for key in (key for key in fields if key not in _DOCKER_KEYS):
            self._findings.unknown_key("docker", key, _DOCKER_KEYS, "docker")
        if not is_empty(fields.get("user_id")):
            self._findings.warn("docker.user_id", "has no effect: it is for images that the agent builds")
        given = {
            "docker.docker_image": fields.get("docker_image"),
            "image_uri": self._payload.get("image_uri"),
        }
        texts = {path: _text_at(value, path, self._findings) for path, value in given.items()}
        found = {path: uri for path, uri in texts.items() if uri is not None}
        for path, uri in found.items():
            if _SPACE.search(uri):
                self._findings.refuse(
                    path, f"{shown(uri)} holds a space", "no image is named so", "Correct the image's name."
                )
        if len(set(found.values())) > 1:
            self._findings.refuse(
                "image_uri", "another image than docker.docker_image", fix="Give one of them."
            )
        return next(iter(found.values()), None)

    def _job(self, entity: str, project: str) -> str | None:
        job = self._text("job")
        if job is None:
            return None
        path, _, alias = job.partition(":")
        parts = path.split("/")
        if (
            len(parts) > 3
            or not all(_JOB_PART.fullmatch(part) for part in parts)
            or re.search(r"[\s/]", alias)
        ):
            self._findings.refuse(
                "job", f"{shown(job)} does not name a job", fix="Write entity/project/name:alias."
            )
            return job
        home = [entity, project][: 3 - len(parts)]
        return f"{'/'.join([*home, *parts])}:{alias or 'latest'}"


def _text_at(value: Any, path: str, findings: Findings) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        findings.expected(path, "a string", value)
        return None
    return value
