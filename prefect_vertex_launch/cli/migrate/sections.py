"""What becomes of the sections of an agent's configuration: `environment`, `registry` and `builder`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from prefect_vertex_launch.cli.migrate.field_report import FieldReport, value_text
from prefect_vertex_launch.cli.migrate.migration import Fate
from prefect_vertex_launch.core.json_value import at, kind_of, shown
from prefect_vertex_launch.core.spelling import right_spelling

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


def read_location(report: FieldReport) -> str | None:
    """Return the region of the jobs, None where a problem says that there is none."""
    environment = report.config.get("environment")
    default = report.environ.get("GOOGLE_CLOUD_REGION") or None
    if environment is None:
        if default:
            report.row("GOOGLE_CLOUD_REGION", default, Fate.BLOCK, "location of every block")
        else:
            _refuse_without_region(report, "W&B's agent asked gcloud for one")
        return default
    if default:
        report.row("GOOGLE_CLOUD_REGION", default, Fate.NO_MEANING, "environment.region counts")
    if not report.is_section("environment", environment):
        return None
    _check_choice(report, "environment.type", environment.get("type"))
    _explain_cloud(report, environment.get("type"))
    _explain_unknown(report, "environment", ("type", "region"), environment)
    return _region(report, environment)


def explain_registry(report: FieldReport) -> None:
    """Say why nothing of the registry is needed."""
    registry = report.config.get("registry")
    if registry is None or registry == {}:
        report.row("registry", "not set", Fate.NO_MEANING, _NOT_BUILT)
    elif report.is_section("registry", registry):
        _explain_fields(report, "registry", _REGISTRY, registry)
        _explain_unknown(report, "registry", _REGISTRY, registry)


def explain_builder(report: FieldReport) -> None:
    """Say why nothing of the builder is needed, and what to do where images were built."""
    builder = report.config.get("builder")
    if builder is None or builder == {}:
        report.row("builder", "not set", Fate.NO_MEANING, _NOT_BUILT)
        return
    if not report.is_section("builder", builder):
        return
    _check_choice(report, "builder.type", builder.get("type"))
    _explain_builder_type(report, builder.get("type"))
    _explain_fields(report, "builder", _BUILDER, builder)
    _explain_unknown(report, "builder", ("type", *_BUILDER), builder)


def _explain_cloud(report: FieldReport, cloud: Any) -> None:
    key = "environment.type"
    fix = "Write type: gcp and the region of the jobs."
    if cloud == "gcp":
        report.row(key, "gcp", Fate.NO_MEANING, "there is no other cloud here")
    elif cloud is None:
        report.refuse(key, None, "missing", "W&B's agent makes no environment without it", fix)
    elif not report.findings.is_refused(key):
        why = "a Vertex AI queue runs on Google Cloud"
        report.refuse(key, cloud, f"{cloud} is another cloud", why, fix)


def _region(report: FieldReport, environment: Mapping[str, Any]) -> str | None:
    key = "environment.region"
    region = report.text(key, environment.get("region"))
    if region:
        report.row(key, region, Fate.BLOCK, "location of every block")
    elif not report.findings.is_refused(key):
        _refuse_without_region(report, "W&B's agent refuses an environment without one")
    return region or None


def _refuse_without_region(report: FieldReport, why: str) -> None:
    fix = "Write environment: {type: gcp, region: us-central1}, say, or set GOOGLE_CLOUD_REGION."
    report.refuse("environment.region", None, "missing", why, fix)


def _explain_builder_type(report: FieldReport, kind: Any) -> None:
    key = "builder.type"
    if kind in ("docker", "kaniko"):
        report.row(
            key,
            kind,
            Fate.CANNOT_MOVE,
            f"{_NOT_BUILT}. Launches of images, of jobs that were made from images, and of code jobs "
            "with a base image go on as they are; of other code make a job with --base-image, or an "
            "image and a job of it with `wandb job create image`",
        )
        report.findings.warn(key, "a launch that would need a built image is refused here")
    elif not report.findings.is_refused(key):
        becomes = "nothing was built, and nothing is"
        report.row(key, value_text(kind, "not set"), Fate.NO_MEANING, becomes)


def _explain_fields(
    report: FieldReport, section: str, reasons: Mapping[str, str], values: Mapping[str, Any]
) -> None:
    """Say of each field that is set why it has no meaning here."""
    for name, reason in reasons.items():
        value, path = values.get(name), at(section, name)
        if value is None:
            continue
        if name != "kaniko-config":  # a piece of a Kubernetes job
            _check_choice(report, path, value)
        if not report.findings.is_refused(path):
            report.row(path, value_text(value, "not set"), Fate.NO_MEANING, reason)


def _check_choice(report: FieldReport, path: str, value: Any) -> None:
    """Refuse what is no text, and a text that is none of the field's choices if it has some."""
    choices = _CHOICES.get(path, ())
    if report.text(path, value) and choices and value not in choices:
        near = right_spelling(value, choices)
        fix = f"Did you mean {near}?" if near else f"Write one of {', '.join(choices)}."
        why = "W&B's agent refuses it, too"
        report.refuse(path, value, f"{shown(value)} is none of {', '.join(choices)}", why, fix)


def _explain_unknown(
    report: FieldReport, section: str, known: Collection[str], values: Mapping[str, Any]
) -> None:
    """Say which fields neither W&B's agent reads nor anything here; the agent itself says nothing."""
    for name in values:
        if name in known:
            continue
        path, meant = at(section, name), right_spelling(name, known)
        hint = f"; did you mean {meant}?" if meant else ""
        if (section, name) == ("environment", "project"):
            hint = "; its project was that of its Google credentials, or name one with --project"
        report.row(path, kind_of(values[name]), Fate.NO_MEANING, f"W&B's agent did not read it{hint}")
        if meant:
            report.findings.warn(path, f"W&B's agent did not read it{hint}")
