"""Where the program of a W&B job is, and what of it a launch can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from prefect_vertex_launch.core.errors import InvalidRunSpec, Problem
from prefect_vertex_launch.core.json_value import is_object, shown

# What the program in the container reads its job's code from.
CODE_VARIABLE: Final = "VERTEX_LAUNCH_CODE"
_NEEDS_IMAGE: Final = "Create an image job (wandb job create image …) or launch with --docker-image."


@dataclass(frozen=True, slots=True)
class JobCode:
    """Code that is fetched inside of the container: of an artifact, or of a commit.

    Attributes:
        job_id: The job's own artifact, which holds a patch to the commit and the frozen requirements.
        artifact_id: The artifact that holds the code; None if it is in git.
        remote: The git repository; None if the code is in an artifact.
        commit: The commit's hash.
        has_patch: Whether the run that the job was made from had changes that were not committed.
        working_dir: Directory inside of the code in which the command runs.
    """

    job_id: str
    artifact_id: str | None = None
    remote: str | None = None
    commit: str | None = None
    has_patch: bool = False
    working_dir: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the program in the container needs."""
        fields = {
            "job": self.job_id,
            "artifact": self.artifact_id,
            "remote": self.remote,
            "commit": self.commit,
            "patch": self.has_patch or None,
            "working_dir": self.working_dir,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class JobSource:
    """Where a job's program is: in an image, or in code that runs on a base image or needs a build."""

    kind: Literal["image", "artifact", "repo"]
    image_uri: str | None
    entry_point: tuple[str, ...]
    base_image: str | None = None
    code: JobCode | None = None
    is_notebook: bool = False

    @property
    def needs_build(self) -> bool:
        """Whether an image would have to be built for the code; none is built here."""
        return self.kind != "image" and self.base_image is None


@dataclass(frozen=True, slots=True)
class LaunchImage:
    """What a launch runs: an image, the entry point its W&B job brings, and code to be put into it."""

    image_uri: str
    entry_point: tuple[str, ...] = ()
    code: JobCode | None = None


def image_of_job(source: JobSource, *, where: str, working_dir: str | None = None) -> LaunchImage:
    """Return the image, entry point and code of a W&B job.

    Args:
        source: The job's source.
        where: Names the job in errors.
        working_dir: The launch's own working directory, relative to the code.

    Raises InvalidRunSpec when the code could not reach a container, or the directory is not inside of it.
    """
    if source.needs_build:
        raise _refusal(
            where,
            f"its source is {source.kind}, without a base image",
            "no image is built here, so the code would be missing",
            f"Create the job with --base-image, and the code is fetched into it. {_NEEDS_IMAGE}",
        )
    if source.image_uri is not None:
        if working_dir is not None:
            raise _refusal(
                "overrides.working_dir",
                "cannot be used",
                f"{where} is an image, which has its own",
                "Remove it, or set the directory in the image.",
            )
        return LaunchImage(source.image_uri, source.entry_point)
    if source.is_notebook:
        raise _refusal(
            where,
            "its program is a notebook",
            "a container runs a command, and notebooks are not made into programs here",
            f"Save it as a script and make the job from that. {_NEEDS_IMAGE}",
        )
    assert source.base_image is not None
    return LaunchImage(source.base_image, source.entry_point, _code_of(source, where, working_dir))


def _code_of(source: JobSource, where: str, working_dir: str | None) -> JobCode:
    code = source.code
    if code is None:
        raise _refusal(
            where,
            "does not say where its code is",
            "the program is never run without it",
            "Create the job again.",
        )
    if working_dir is None:
        return code
    if working_dir.startswith("/") or ".." in working_dir.split("/"):
        raise _refusal(
            "overrides.working_dir",
            f"{shown(working_dir)} is not inside of the code",
            "it is relative to the top of the code",
            "Write a path such as src/training.",
        )
    return JobCode(code.job_id, code.artifact_id, code.remote, code.commit, code.has_patch, working_dir)


def read_code(source: Mapping[str, Any], job_id: str, file_names: set[str]) -> JobCode | None:
    """Return the code that the `source` of a `wandb-job.json` names; None if it names none.

    `job_id` is the job's own artifact and `file_names` what is in it. Source: `JobBuilder` of `wandb`.
    """
    artifact, git = source.get("artifact"), source.get("git")
    if isinstance(artifact, str):
        _, found, artifact_id = artifact.partition("wandb-artifact://_id/")
        return JobCode(job_id, artifact_id=artifact_id) if found and artifact_id else None
    if not is_object(git):
        return None
    remote, commit = _word(git, "remote"), _word(git, "commit")
    if remote is None or commit is None:
        return None
    return JobCode(job_id, remote=remote, commit=commit, has_patch="diff.patch" in file_names)


def _word(git: Mapping[str, Any], name: str) -> str | None:
    """Return a text that git would not take for an option."""
    value = git.get(name)
    return value if isinstance(value, str) and value and not value.startswith("-") else None


def _refusal(where: str, what: str, why: str, fix: str) -> InvalidRunSpec:
    return InvalidRunSpec(Problem(where, what, why, fix))
