from __future__ import annotations

import pytest

from vertex_launch.diagnosis import Category, console_url, diagnose, logs_url
from vertex_launch.lifecycle import JobRecord
from vertex_launch.vertex_types import JobState

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
    ("Internal error occurred for the current attempt", 13, "internal"),
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
    ("CANCELED", 1, "cancelled"),
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
    assert diagnosis.remedy or category == "cancelled"


@pytest.mark.parametrize(
    ("state", "category"),
    [
        (JobState.JOB_STATE_SUCCEEDED, "succeeded"),
        (JobState.JOB_STATE_PARTIALLY_SUCCEEDED, "succeeded"),
        (JobState.JOB_STATE_CANCELLED, "cancelled"),
        (JobState.JOB_STATE_EXPIRED, "expired"),
    ],
)
def test_other_ends_are_known_by_their_state(state, category):
    assert diagnose(JobRecord(NAME, state, error_message="Internal error")).category.value == category


def test_a_job_that_vanished_is_lost():
    job = JobRecord(NAME, JobState.JOB_STATE_RUNNING, is_gone=True)
    assert diagnose(job).category is Category.LOST


@pytest.mark.parametrize("state", [*JobState, 42])
@pytest.mark.parametrize("code", [-1, *range(20)])
def test_diagnose_is_total(state, code):
    assert diagnose(JobRecord(NAME, state, error_code=code)).summary


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
        "timeout", "cancelled", "expired", "internal", "invalid", "lost", "unknown",
    }  # fmt: skip


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
