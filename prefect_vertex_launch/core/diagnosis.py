"""A finished job's state and error as something a person can act on.

Vertex AI says why a job failed in prose. Its texts are classified here by a table of the messages it
is known to write; `google.rpc` codes decide only where no text matches, because beside code 1
(cancelled) none of them is documented. The names of the categories are a stable contract: dashboards
and automations may depend on them; docs/categories.md says what each one means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal
from urllib.parse import quote

from prefect_vertex_launch.core.states import JobRecord, LaunchState, Requester, StopRequest


class Category(StrEnum):
    """Why a launch ended as it did."""

    SUCCEEDED = "succeeded"
    USER_CODE = "user-code"
    OUT_OF_MEMORY = "out-of-memory"
    CAPACITY = "capacity"
    QUOTA = "quota"
    PREEMPTED = "preempted"
    IMAGE = "image"
    PERMISSION = "permission"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    CANCELLED_ELSEWHERE = "cancelled-elsewhere"
    QUEUEING_TIMEOUT = "queueing-timeout"
    START_TIMEOUT = "start-timeout"
    EXPIRED = "expired"
    INTERNAL = "internal"
    INVALID = "invalid"
    LOST = "lost"
    NO_RUN = "no-run"
    REFUSED = "refused"
    UNFORESEEN = "unforeseen"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The end of a launch in a person's words.

    `summary` is one line, `detail` is what Vertex AI wrote or what was refused (may be empty), `remedy`
    what to do next (may be empty).
    """

    category: Category
    summary: str
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Known:
    """A cause: its summary (which may use the pattern's groups) and its remedy."""

    category: Category
    summary: str
    remedy: str


_BY_CATEGORY: Mapping[Category, _Known] = MappingProxyType(
    {
        known.category: known
        for known in (
            _Known(
                Category.USER_CODE,
                "The program in the container failed.",
                "Read the job's log: the error is in the program, its arguments or its image.",
            ),
            _Known(
                Category.OUT_OF_MEMORY,
                "The container ran out of memory.",
                "Choose a machine type with more memory, or make the program need less of it.",
            ),
            _Known(
                Category.CAPACITY,
                "The region has no free machines of this kind.",
                "Try another region or accelerator, or wait for one with scheduling_strategy FLEX_START.",
            ),
            _Known(
                Category.QUOTA,
                "A quota of the Google Cloud project is used up.",
                "Ask for more of the quota named in the detail, or lower max_jobs of the queue.",
            ),
            _Known(
                Category.PREEMPTED,
                "The machines were taken away (spot preemption).",
                "Launch again and resume from a checkpoint, or use scheduling_strategy STANDARD.",
            ),
            _Known(
                Category.IMAGE,
                "The container image could not be used.",
                "Check the image's name and tag, that it is built for linux/amd64, and that the Vertex AI "
                "service agent may read it (Artifact Registry Reader).",
            ),
            _Known(
                Category.PERMISSION,
                "The job lacks a permission.",
                "Grant the permission named in the detail to the job's service account or to the Vertex AI "
                "service agent.",
            ),
            _Known(
                Category.TIMEOUT,
                "The job ran longer than its timeout.",
                "Raise run.timeout (seconds; Vertex AI's default is 7 days), or let the program end earlier.",
            ),
            _Known(
                Category.INTERNAL,
                "Vertex AI failed internally.",
                "Launch the run again; if it happens again, give the job's name to Google Cloud support.",
            ),
            _Known(
                Category.INVALID,
                "Vertex AI could not run the job as it was specified.",
                "Correct what the detail names in the queue's spec or in the launch's overrides; a machine "
                "type or accelerator that is not supported may be so in another region.",
            ),
            _Known(
                Category.CANCELLED_ELSEWHERE,
                "The job was cancelled, neither at W&B nor in Prefect.",
                "Somebody cancelled it in the Google Cloud console or with gcloud; the project's audit log "
                "says who. Launch the run again if it was a mistake.",
            ),
            _Known(
                Category.QUEUEING_TIMEOUT,
                "The job waited for quota and machines for longer than the queueing timeout.",
                "Raise the queueing timeout of the queue's block, add a fallback to the queue, or choose "
                "machines that are easier to get.",
            ),
            _Known(
                Category.START_TIMEOUT,
                "The run did not show up at W&B within the start timeout.",
                "Read the job's log for what the program did until then; raise the start timeout of the "
                "queue's block if it only needs longer to reach wandb.init().",
            ),
            _Known(
                Category.EXPIRED,
                "The job expired before it could finish.",
                "Raise run.max_wait_duration or run.timeout, or choose a region with more capacity.",
            ),
            _Known(
                Category.LOST,
                "The job is gone: Vertex AI does not know it any more.",
                "Somebody deleted it; the project's audit log says who. Launch the run again.",
            ),
            _Known(
                Category.NO_RUN,
                "The job exited successfully but failed to call wandb.init.",
                "Call wandb.init() in the program, without another id, project or entity than the launch's, "
                "and see in the job's log whether the container reached W&B.",
            ),
            _Known(
                Category.REFUSED,
                "The run was refused; nothing was submitted.",
                "Correct what the detail names and push the run again.",
            ),
            _Known(
                Category.UNFORESEEN,
                "The run could not be launched; nothing was submitted.",
                "Report it with what the log says, and push the run again.",
            ),
            _Known(
                Category.UNKNOWN,
                "The job failed, and Vertex AI gave no reason that is known here.",
                "Read the detail and the job's log.",
            ),
        )
    }
)

_BY_REQUESTER: Mapping[Requester, _Known] = MappingProxyType(
    {
        Requester.WANDB: _Known(Category.CANCELLED, "Stopped at W&B by a user.", ""),
        Requester.PREFECT: _Known(Category.CANCELLED, "Cancelled in Prefect by a user.", ""),
        Requester.QUEUEING_TIMEOUT: _BY_CATEGORY[Category.QUEUEING_TIMEOUT],
        Requester.START_TIMEOUT: _BY_CATEGORY[Category.START_TIMEOUT],
    }
)

# Vertex AI says what it saw within a few hundred characters; a program's last words may be megabytes.
_MAX_READ = 20_000
_LINK = re.compile(r"https?://\S+")
_SIGNALS_OF_A_CRASH = {"6": "SIGABRT", "134": "SIGABRT", "11": "SIGSEGV", "139": "SIGSEGV"}
_EXIT = re.compile(
    r"(?:The )?replica (?P<replica>\S+?) exited with a non-zero status of (?P<status>\d+)", re.IGNORECASE
)
# Status 9 and 137 are SIGKILL: in a container that nobody stopped it is the kernel's out-of-memory killer.
_KILLED = re.compile(r"exited with a non-zero status of (?:137\b|9\s*\(SIGKILL\))", re.IGNORECASE)

# The first match decides. Each text was seen from Vertex AI or in its documentation, or is the
# container runtime's own.
_TEXTS: tuple[tuple[re.Pattern[str], Category], ...] = tuple(
    (re.compile(text, re.IGNORECASE), category)
    for text, category in (
        (r"List of found errors", Category.INVALID),
        (r"ran out of memory|out of memory|OOMKilled", Category.OUT_OF_MEMORY),
        (r"preempt(?:ed|ion)", Category.PREEMPTED),
        (r"exited with a non-zero status", Category.USER_CODE),
        (r"internal error occurred", Category.INTERNAL),
        (
            r"resources are insufficient|STOCKOUT|insufficient resources|not have enough resources"
            r"|resource_pool_exhausted",
            Category.CAPACITY,
        ),
        (r"quota metrics exceed|quota exceeded|exceed(?:s|ed)? (?:the )?quota|quota limit", Category.QUOTA),
        (
            r"failed to pull|pull(?:ing)? (?:the )?(?:container )?image|ImagePullBackOff|ErrImagePull"
            r"|manifest unknown|image .{0,200}(?:not found|does not exist|not accessible)|exec format error"
            r"|artifactregistry\.repositories\.downloadArtifacts",
            Category.IMAGE,
        ),
        (r"permission|PERMISSION_DENIED|iam\.serviceAccounts|access denied|forbidden", Category.PERMISSION),
        (r"deadline exceeded|timed out|exceeded .{0,40}time|time ?out", Category.TIMEOUT),
        (r"internal error", Category.INTERNAL),
        (r"is not supported|must be unique|can only contain|required field|invalid", Category.INVALID),
        (r"^cancell?ed\.?$", Category.CANCELLED_ELSEWHERE),
    )
)

# google.rpc.Code. Only 1 is documented for jobs; the others speak when the text does not.
_CODES: Mapping[int, Category] = MappingProxyType(
    {
        1: Category.CANCELLED_ELSEWHERE,
        3: Category.INVALID,
        4: Category.TIMEOUT,
        5: Category.INVALID,
        7: Category.PERMISSION,
        8: Category.CAPACITY,
        9: Category.INVALID,
        13: Category.INTERNAL,
        14: Category.INTERNAL,
        16: Category.PERMISSION,
    }
)

_ENDS_BY_STOP = frozenset({LaunchState.CANCELLED, LaunchState.FAILED})

_STATES: Mapping[LaunchState, Category] = MappingProxyType(
    {
        LaunchState.CANCELLED: Category.CANCELLED_ELSEWHERE,
        LaunchState.EXPIRED: Category.EXPIRED,
        LaunchState.LOST: Category.LOST,
    }
)


def diagnose(job: JobRecord, *, stop: StopRequest | None = None) -> Diagnosis:
    """Return why a job ended as it did; total, for a job that has not ended too.

    `stop` is what was asked for here, at W&B or in Prefect. It explains a cancelled job, and a failed
    one as well: a program that is stopped during its grace exits with an error of its own.
    """
    state, detail = job.launch_state, job.error_message.strip()
    if state is LaunchState.SUCCEEDED:
        return Diagnosis(Category.SUCCEEDED, "The job succeeded.", detail, "")
    if state is LaunchState.PARTIALLY_SUCCEEDED:
        return Diagnosis(
            Category.SUCCEEDED,
            "The job succeeded in part: some of its results may be missing.",
            detail,
            "Read the job's log for what did not succeed.",
        )
    if not job.is_terminal:
        return Diagnosis(Category.UNKNOWN, f"The job has not ended: it is {state.value}.", detail, "")
    if stop is not None and state in _ENDS_BY_STOP:
        known = _BY_REQUESTER[stop.who]
        return Diagnosis(known.category, known.summary, detail, known.remedy)
    known = _BY_CATEGORY[_STATES.get(state) or _category_of_failure(detail, job.error_code)]
    return Diagnosis(known.category, _summary(known, job), detail, known.remedy)


def stopped(stop: StopRequest) -> Diagnosis:
    """Return what to say of a launch that was stopped before it had a job."""
    known = _BY_REQUESTER[stop.who]
    return Diagnosis(known.category, known.summary, "", known.remedy)


def no_run(job: JobRecord) -> Diagnosis:
    """Return what to say of a job that succeeded while its run never showed up at W&B."""
    known = _BY_CATEGORY[Category.NO_RUN]
    return Diagnosis(known.category, known.summary, job.error_message.strip(), known.remedy)


def refused(message: str) -> Diagnosis:
    """Return what to say of a run that was never submitted; `message` is all that is wrong with it."""
    return _not_submitted(Category.REFUSED, message)


def unforeseen_end(message: str) -> Diagnosis:
    """Return what to say of a run that an error of our own kept from being submitted."""
    return _not_submitted(Category.UNFORESEEN, message)


def _not_submitted(category: Category, message: str) -> Diagnosis:
    known = _BY_CATEGORY[category]
    return Diagnosis(known.category, known.summary, message.strip(), known.remedy)


def quota_kind(message: str) -> Literal["capacity", "rate"]:
    """Tell which of its two quotas Vertex AI means with a 429 (RESOURCE_EXHAUSTED).

    "capacity" is a quota of machines, `…/custom_model_training_…`: it is used up for as long as others'
    jobs run, and a person should know. "rate" is one of requests a minute: it is over in seconds.
    Sources: Vertex AI's page of quotas; the text of such a refusal in public issues.
    """
    if "custom_model_training_" in message:
        return "capacity"
    is_of_machines = "quota metrics exceed" in message and "request" not in message
    return "capacity" if is_of_machines else "rate"


def console_url(job_name: str) -> str:
    """Return the page of a job (`projects/…/locations/…/customJobs/…`) in the Google Cloud console.

    The address is the one the SDK prints (`google.cloud.aiplatform.jobs`, 2.x).
    """
    project, location, job_id = _parts(job_name)
    return (
        f"https://console.cloud.google.com/agent-platform/locations/{location}/training/{job_id}"
        f"?project={project}"
    )


def logs_url(job_name: str) -> str:
    """Return the page of a job's log entries (resource type `ml_job`) in the Google Cloud console."""
    project, _, job_id = _parts(job_name)
    return (
        "https://console.cloud.google.com/logs/query;query="
        f"resource.type%3D%22ml_job%22%20resource.labels.job_id%3D%22{job_id}%22?project={project}"
    )


def _category_of_failure(detail: str, code: int) -> Category:
    # A replica's own last words and the links may contain anything; they do not say what Vertex AI saw.
    said = _LINK.sub("", detail[:_MAX_READ].split("Termination log message", 1)[0])
    if _KILLED.search(said):
        return Category.OUT_OF_MEMORY
    for pattern, category in _TEXTS:
        if pattern.search(said):
            return category
    return _CODES.get(code, Category.UNKNOWN)


def _summary(known: _Known, job: JobRecord) -> str:
    exit_ = _EXIT.search(job.error_message[:_MAX_READ])
    if known.category is Category.CAPACITY and job.start_time is not None:
        return "The machines were taken away, and the region has no others of this kind."
    if exit_ and known.category is Category.OUT_OF_MEMORY:
        return f"The container ran out of memory: {exit_['replica']} was killed."
    if exit_ and known.category is Category.USER_CODE:
        return _summary_of_exit(exit_["replica"], exit_["status"])
    return known.summary


def _summary_of_exit(replica: str, status: str) -> str:
    if status in {"126", "127"}:
        return f"The container's command could not be run ({replica} exited with {status})."
    if status in _SIGNALS_OF_A_CRASH:
        return f"The program crashed: {replica} ended with {_SIGNALS_OF_A_CRASH[status]} ({status})."
    return f"The program failed: {replica} exited with {status}."


def _parts(job_name: str) -> tuple[str, str, str]:
    match = re.fullmatch(
        r"projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/customJobs/(?P<id>[^/]+)", job_name
    )
    if match is None:
        raise ValueError(f"{job_name!r} is not the resource name of a custom job")
    return quote(match["project"], safe=""), quote(match["location"], safe=""), quote(match["id"], safe="")
