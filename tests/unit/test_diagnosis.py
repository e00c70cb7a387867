"""Every text that Vertex AI is known to write has its category, and so has every other end of a launch."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prefect.events import EventTrigger, Resource
from prefect.events.schemas.automations import AutomationCore

from prefect_vertex_launch.core.diagnosis import (
    Category,
    console_url,
    diagnose,
    logs_url,
    no_run,
    quota_kind,
    refused,
    stopped,
)
from prefect_vertex_launch.core.retry_policy import Attempt, Policy, next_attempt
from prefect_vertex_launch.core.states import JobRecord, Requester, StopRequest
from prefect_vertex_launch.core.vertex_types import JobState

DOCUMENT = Path(__file__).parents[2] / "docs" / "categories.md"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

NAME = "projects/my-project/locations/europe-west4/customJobs/4611686018427387911"
LOGS = (
    " To find out more about why your job exited please check the logs: https://console.cloud.google.com/"
    "logs/viewer?project=image-quota-internal-error&resource=ml_job%2Fjob_id%2F1"
)


def failed(message: str, code: int = 0) -> JobRecord:
    return JobRecord(NAME, JobState.JOB_STATE_FAILED, error_code=code, error_message=message)


MESSAGES = [
    (
        "The replica workerpool0-0 exited with a non-zero status of 1. Termination reason: Error." + LOGS,
        3,
        "user-code",
    ),
    ("The replica workerpool1-3 exited with a non-zero status of 139.", 3, "user-code"),
    (
        "The replica workerpool0-0 exited with a non-zero status of 127. Termination reason: Error.",
        3,
        "user-code",
    ),
    (
        "The replica workerpool0-0 exited with a non-zero status of 1. Termination reason: Error."
        " Termination log message: PermissionError: quota exceeded, image not found, out of memory",
        3,
        "user-code",
    ),
    (
        "The replica workerpool0-0 ran out of memory and exited with a non-zero status of 9(SIGKILL)." + LOGS,
        3,
        "out-of-memory",
    ),
    (
        "The replica workerpool0-0 exited with a non-zero status of 137. Termination reason: Error.",
        3,
        "out-of-memory",
    ),
    (
        "Resources are insufficient in region: us-central1. "
        "Try a different region or use a different accelerator.",
        8,
        "capacity",
    ),
    ("STOCKOUT", 0, "capacity"),
    ("The replica workerpool0-0 exited with a non-zero status of 6.", 3, "user-code"),
    ("The replica workerpool2-1 exited with a non-zero status of 134.", 3, "user-code"),
    ("The replica workerpool0-0 exited with a non-zero status of 9(SIGKILL).", 3, "out-of-memory"),
    (
        "The following quota metrics exceed quota limits: "
        "aiplatform.googleapis.com/custom_model_training_nvidia_t4_gpus",
        8,
        "quota",
    ),
    ("The machine was preempted too many times.", 8, "preempted"),
    ('Failed to pull image "europe-docker.pkg.dev/p/r/train:v9": manifest unknown', 3, "image"),
    (
        "Vertex AI Service Agent service-1@gcp-sa-aiplatform.iam.gserviceaccount.com does not have "
        "permission to access Artifact Registry repository r: "
        "artifactregistry.repositories.downloadArtifacts",
        7,
        "image",
    ),
    ("Permission 'storage.objects.get' denied on resource", 7, "permission"),
    ("Job timed out after 3600s.", 4, "timeout"),
    ("The job timed out: it has run for its timeout of 5 seconds.", 4, "timeout"),
    ("Internal error occurred for the current attempt", 13, "internal"),
    ("Internal error occurred for the current attempt: [Errno 13] Permission denied", 13, "internal"),
    (
        "Vertex AI service agent lacks iam.serviceAccounts.actAs on trainer@p.iam.gserviceaccount.com",
        7,
        "permission",
    ),
    ('Accelerator "NVIDIA_TESLA_K80" is not supported for machine type "n1-standard-4".', 3, "invalid"),
    ('Machine type "a2-highgpu-1g" is not supported.', 3, "invalid"),
    ("EnvVar names must be unique.", 3, "invalid"),
    (
        "List of found errors:\t1.Field: job_spec.worker_pool_specs[0].machine_spec.accelerator_type; "
        "Message: Both `accelerator_type` and `accelerator_count` should be specified or none.\t",
        3,
        "invalid",
    ),
    (
        "List of found errors:\t1.Field: labels; Message: There can be no more than 64 labels attached to a "
        "single resource. Label keys and values can only contain lowercase letters, numbers, dashes and "
        "underscores.\t2.Field: job_spec; Message: no permission, no quota, no image.\t",
        3,
        "invalid",
    ),
    (
        "Label keys and values can only contain lowercase letters, numbers, dashes and underscores.",
        0,
        "invalid",
    ),
    ("Required field is not set.", 0, "invalid"),
    (
        "List of found errors:\t1.Field: job_spec.worker_pool_specs[0]; Message: Machine type "
        '"a2-highgpu-1g" is not supported.\t',
        3,
        "invalid",
    ),
    ("", 13, "internal"),
    ("", 7, "permission"),
    ("", 8, "capacity"),
    ("", 4, "timeout"),
    ("CANCELED", 1, "cancelled-elsewhere"),
    ("CANCELED", 0, "cancelled-elsewhere"),
    ("something nobody has seen before", 2, "unknown"),
    ("", 0, "unknown"),
]


@pytest.mark.parametrize(("message", "code", "category"), MESSAGES)
def test_a_failure_is_known_by_its_message_then_by_its_code(message, code, category):
    diagnosis = diagnose(failed(message, code))
    assert diagnosis.category.value == category
    assert diagnosis.detail == message.strip()
    assert diagnosis.summary
    assert "\n" not in diagnosis.summary
    assert diagnosis.remedy


@pytest.mark.parametrize(
    ("state", "category"),
    [
        (JobState.JOB_STATE_SUCCEEDED, "succeeded"),
        (JobState.JOB_STATE_PARTIALLY_SUCCEEDED, "succeeded"),
        (JobState.JOB_STATE_CANCELLED, "cancelled-elsewhere"),
        (JobState.JOB_STATE_EXPIRED, "expired"),
    ],
)
def test_other_ends_are_known_by_their_state(state, category):
    assert diagnose(JobRecord(NAME, state, error_message="Internal error")).category.value == category


def test_a_job_that_vanished_is_lost():
    job = JobRecord(NAME, JobState.JOB_STATE_RUNNING, is_gone=True)
    diagnosis = diagnose(job)
    assert diagnosis.category is Category.LOST
    assert "audit log" in diagnosis.remedy


@pytest.mark.parametrize("state", [JobState.JOB_STATE_PARTIALLY_SUCCEEDED, JobState.JOB_STATE_EXPIRED])
def test_an_odd_end_keeps_what_vertex_said_and_says_what_to_do(state):
    diagnosis = diagnose(JobRecord(NAME, state, error_message="2 of 3 workers ended"))
    assert diagnosis.detail == "2 of 3 workers ended"
    assert diagnosis.remedy


def asked_by(who):
    return None if who is None else StopRequest(who, NOW, grace_seconds=60)


@pytest.mark.parametrize("who", [None, *Requester])
def test_diagnose_is_total(who):
    for state in (*JobState, 42):
        for code in range(-1, 20):
            diagnosis = diagnose(JobRecord(NAME, state, error_code=code), stop=asked_by(who))
            assert diagnosis.summary
            assert "\n" not in diagnosis.summary


@pytest.mark.parametrize("state", [JobState.JOB_STATE_CANCELLED, JobState.JOB_STATE_FAILED])
@pytest.mark.parametrize(
    ("who", "category", "summary"),
    [
        (Requester.WANDB, Category.CANCELLED, "Stopped at W&B by a user."),
        (Requester.PREFECT, Category.CANCELLED, "Cancelled in Prefect by a user."),
        (Requester.QUEUEING_TIMEOUT, Category.QUEUEING_TIMEOUT, "longer than the queueing timeout"),
        (Requester.START_TIMEOUT, Category.START_TIMEOUT, "within the start timeout"),
    ],
)
def test_an_end_that_was_asked_for_says_who_asked(state, who, category, summary):
    message = "The replica workerpool0-0 exited with a non-zero status of 1."
    diagnosis = diagnose(JobRecord(NAME, state, error_message=message), stop=asked_by(who))
    assert diagnosis.category is category
    assert summary in diagnosis.summary
    assert diagnosis.detail == message


@pytest.mark.parametrize(
    ("state", "category"),
    [
        (JobState.JOB_STATE_SUCCEEDED, Category.SUCCEEDED),
        (JobState.JOB_STATE_EXPIRED, Category.EXPIRED),
    ],
)
def test_a_job_that_ended_by_itself_before_its_stop_keeps_its_own_end(state, category):
    assert diagnose(JobRecord(NAME, state), stop=asked_by(Requester.WANDB)).category is category


def test_a_cancel_that_nobody_here_asked_for_leads_to_the_audit_log():
    diagnosis = diagnose(JobRecord(NAME, JobState.JOB_STATE_CANCELLED, error_message="CANCELED"))
    assert diagnosis.summary == "The job was cancelled, neither at W&B nor in Prefect."
    assert "audit log" in diagnosis.remedy
    assert "gcloud" in diagnosis.remedy


def test_a_stop_before_there_was_a_job_says_who_asked():
    diagnosis = stopped(StopRequest(Requester.PREFECT, NOW, grace_seconds=0))
    assert (diagnosis.category, diagnosis.detail) == (Category.CANCELLED, "")
    assert "Prefect" in diagnosis.summary


def test_a_job_without_a_run_is_told_to_call_init():
    diagnosis = no_run(JobRecord(NAME, JobState.JOB_STATE_SUCCEEDED))
    assert diagnosis.category is Category.NO_RUN
    assert "wandb.init()" in diagnosis.remedy


def test_a_refusal_has_all_that_is_wrong_as_its_detail():
    diagnosis = refused(" spec.worker_pool_specs: missing ")
    assert (diagnosis.category, diagnosis.detail) == (Category.REFUSED, "spec.worker_pool_specs: missing")
    assert diagnosis.remedy


def test_a_stockout_after_the_start_is_told_from_one_before():
    stockout = {"error_message": "Resources are insufficient in region: europe-west4.", "error_code": 8}
    waiting = diagnose(JobRecord(NAME, JobState.JOB_STATE_FAILED, **stockout))
    taken_away = diagnose(JobRecord(NAME, JobState.JOB_STATE_FAILED, start_time=NOW, **stockout))
    assert waiting.category is taken_away.category is Category.CAPACITY
    assert "no free machines" in waiting.summary
    assert "taken away" in taken_away.summary


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "The following quota metrics exceed quota limits: "
            "aiplatform.googleapis.com/custom_model_training_nvidia_t4_gpus",
            "capacity",
        ),
        (
            "The following quota metrics exceed quota limits: "
            "aiplatform.googleapis.com/custom_model_training_preemptible_nvidia_l4_gpus",
            "capacity",
        ),
        (
            "The following quota metrics exceed quota limits: "
            "aiplatform.googleapis.com/restricted_image_training_nvidia_a100_gpus",
            "capacity",
        ),
        (
            "Quota exceeded for quota metric 'Job or LRO submission requests' and limit 'Job or LRO "
            "submission requests per minute per region' of service 'aiplatform.googleapis.com'",
            "rate",
        ),
        ("The following quota metrics exceed quota limits: aiplatform.googleapis.com/crud_requests", "rate"),
        ("Resource has been exhausted (e.g. check quota).", "rate"),
        ("", "rate"),
    ],
)
def test_the_two_kinds_of_429_are_told_apart(message, kind):
    assert quota_kind(message) == kind


def test_the_replica_and_its_status_are_in_the_summary():
    assert diagnose(failed("The replica workerpool0-0 exited with a non-zero status of 3.")).summary == (
        "The program failed: workerpool0-0 exited with 3."
    )
    assert "SIGSEGV" in diagnose(failed("The replica w-0 exited with a non-zero status of 11.")).summary
    assert (
        "could not be run"
        in diagnose(failed("The replica w-0 exited with a non-zero status of 126.")).summary
    )


def test_category_names_are_a_contract():
    assert {category.value for category in Category} == {
        "succeeded", "user-code", "out-of-memory", "capacity", "quota", "preempted", "image", "permission",
        "timeout", "cancelled", "cancelled-elsewhere", "queueing-timeout", "start-timeout", "expired",
        "internal", "invalid", "lost", "no-run", "refused", "unforeseen", "unknown",
    }  # fmt: skip


def documented():
    """Return the rows of the document's table as (name, what comes next)."""
    rows = re.findall(r"^\| `([a-z-]+)` \|[^|]+\| ([^|]+?) \|[^|]+\|$", DOCUMENT.read_text(), re.MULTILINE)
    assert rows
    return rows


def test_the_document_lists_every_category_once():
    assert sorted(name for name, _ in documented()) == sorted(category.value for category in Category)


@pytest.mark.parametrize(("name", "what_comes_next"), documented())
def test_the_document_says_what_is_launched_again(name, what_comes_next):
    category = Category(name)
    with_fallback = next_attempt([category], Policy(max_relaunches=1, plans=2))
    without = next_attempt([category], Policy(max_relaunches=1, plans=1))
    assert (
        what_comes_next
        == {
            (None, None): "nothing",
            (Attempt(2, 0), Attempt(2, 0)): "the same again",
            (Attempt(2, 1), Attempt(2, 0)): "the next fallback, else the same again",
            (Attempt(2, 1), None): "the next fallback",
        }[with_fallback, without]
    )


def test_links_lead_to_the_job_and_its_log():
    assert console_url(NAME) == (
        "https://console.cloud.google.com/agent-platform/locations/europe-west4/training/4611686018427387911"
        "?project=my-project"
    )
    assert logs_url(NAME) == (
        "https://console.cloud.google.com/logs/query;query=resource.type%3D%22ml_job%22%20"
        "resource.labels.job_id%3D%224611686018427387911%22?project=my-project"
    )
    with pytest.raises(ValueError, match="not the resource name"):
        console_url("customJobs/1")


def test_the_documents_automation_fires_on_its_categories_and_on_no_other():
    written = re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert written
    automation = AutomationCore.model_validate(yaml.safe_load(written[1]))
    trigger = automation.trigger
    assert isinstance(trigger, EventTrigger)
    assert trigger.expect == {"vertex-launch.launch.ended"}

    def fires(category):
        labels = {
            "prefect.resource.id": "prefect.flow-run.0",
            "prefect.resource.name": "train",
            "vertex-launch.category": category.value,
        }
        return trigger.match.matches(Resource(labels))

    assert {category for category in Category if fires(category)} == {
        Category.CAPACITY, Category.QUOTA, Category.QUEUEING_TIMEOUT,
    }  # fmt: skip


def test_of_a_long_message_only_the_beginning_is_read():
    """Vertex AI's own words come first; a program may have written megabytes after them."""
    said = "The replica workerpool0-0 exited with a non-zero status of 1."
    assert diagnose(failed(f"{'x ' * 5_000}{said}")).category is Category.USER_CODE
    assert diagnose(failed(f"{'x ' * 50_000}{said}")).category is Category.UNKNOWN
