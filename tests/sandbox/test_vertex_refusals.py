"""What the job service of the sandbox refuses, in Vertex AI's words and format."""

from __future__ import annotations

import httpx
import pytest
from google.api_core.exceptions import InvalidArgument

from prefect_vertex_launch.core.vertex_types import CustomJob, JobState
from prefect_vertex_launch.sandbox.vertex.refusal import VertexRefusal
from tests.eventually import HANG_SECONDS
from tests.sandbox.served_vertex import PACKAGE, PARENT, Served, create, job, outcome, pool_with, python

_POOL = "job_spec.worker_pool_specs[0]"
_GPU = {"machine_type": "n1-standard-4", "accelerator_count": 1}


@pytest.mark.parametrize(
    ("custom_job", "field", "message"),
    [
        (job(name=""), "display_name", "Required"),
        (job(name="x" * 129), "display_name", "128"),
        (job(labels={"A": "b"}), "labels", "lowercase"),
        (job(labels={"_a": "b"}), "labels", "start with"),
        (job(labels={"a": "b" * 64}), "labels", "less than 64"),
        (job(labels={f"a{n}": "" for n in range(65)}), "labels", "64 labels"),
        (CustomJob(display_name="x"), "job_spec.worker_pool_specs", "Required"),
        (pool_with(replica_count=2), f"{_POOL}.replica_count", "exactly one"),
        (pool_with(replica_count=0), f"{_POOL}.replica_count", "exactly one"),
        (pool_with(container_spec=None), f"{_POOL}.task", "Exactly one"),
        (job(python("pass", image="")), f"{_POOL}.container_spec.image_uri", "Required"),
        (pool_with(machine_spec={}), f"{_POOL}.machine_spec.machine_type", "Required"),
        (pool_with(machine_spec={"machine_type": "z9"}), f"{_POOL}.machine_spec.machine_type", "not sup"),
        (pool_with(machine_spec=_GPU), f"{_POOL}.machine_spec.accelerator_type", "or none."),
        (
            pool_with(machine_spec={**_GPU, "accelerator_type": "NVIDIA_L4"}),
            f"{_POOL}.machine_spec.accelerator_type",
            'Accelerator "NVIDIA_L4" is not supported for machine type "n1-standard-4".',
        ),
        (
            pool_with(machine_spec={**_GPU, "accelerator_type": "NVIDIA_TESLA_T4", "accelerator_count": 3}),
            f"{_POOL}.machine_spec.accelerator_count",
            'Accelerator count 3 of "NVIDIA_TESLA_T4" is not supported',
        ),
        (
            pool_with(container_spec=None, python_package_spec=PACKAGE | {"package_uris": ["s3://b/p"]}),
            f"{_POOL}.python_package_spec.package_uris[0]",
            "gs://",
        ),
        (
            pool_with(container_spec=None, python_package_spec=PACKAGE | {"python_module": ""}),
            f"{_POOL}.python_package_spec.python_module",
            "Required",
        ),
        (job(*[python("pass")] * 5), "job_spec.worker_pool_specs", "At most 4"),
        (
            job(python("pass"), python("pass", replicas=0)),
            "job_spec.worker_pool_specs[1].replica_count",
            "at least 1",
        ),
        (
            job(python("pass"), python("pass", replicas=500_000_000)),
            "job_spec.worker_pool_specs[1].replica_count",
            "at most 1000",
        ),
        (
            job(python("pass", env=[{"name": f"A{n}", "value": ""} for n in range(101)])),
            f"{_POOL}.container_spec.env",
            "At most 100",
        ),
        (pool_with(disk_spec={"boot_disk_size_gb": 99}), f"{_POOL}.disk_spec.boot_disk_size_gb", "100"),
        (
            job(python("pass", env=[{"name": "A-B", "value": ""}])),
            f"{_POOL}.container_spec.env[0].name",
            "C identifier",
        ),
        (
            job(python("pass", env=[{"name": "A", "value": ""}] * 2)),
            f"{_POOL}.container_spec.env",
            "EnvVar names must be unique.",
        ),
        (
            job(base_output_directory={"output_uri_prefix": "s3://b"}),
            "job_spec.base_output_directory.output_uri_prefix",
            "gs://",
        ),
    ],
)  # fmt: skip
async def test_a_job_is_refused_by_field(vertex: Served, custom_job: CustomJob, field: str, message: str):
    with pytest.raises(InvalidArgument) as refused:
        await create(vertex, custom_job)
    text = refused.value.message
    assert text.startswith(f"List of found errors:\t1.Field: {field}; Message: ")
    assert text.endswith("\t")
    assert message in text
    assert "2.Field" not in text


async def test_all_field_errors_come_at_once(vertex: Served):
    bad = job(python("pass", image="") | {"replica_count": 3}, name="", labels={"X": ""})
    with pytest.raises(InvalidArgument) as refused:
        await create(vertex, bad)
    assert [number for number in range(1, 9) if f"\t{number}.Field: " in refused.value.message] == [
        1,
        2,
        3,
        4,
    ]


async def test_a_later_pool_may_be_left_out(vertex: Served):
    ended = await outcome(vertex, job(python("pass"), {}, python("pass")))
    assert ended.state == JobState.JOB_STATE_SUCCEEDED


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"\xff", b'{"displayNmae": "x"}', b'{"jobSpec": {"workerPoolSpecs": 5}}',
     b'{"labels": {"a": 1}}', b'{"jobSpec": {"scheduling": {"timeout": "soon"}}}', b"[" * 100_000,
     b'{"jobSpec": {"workerPoolSpecs": [{"containerSpec": {}, "pythonPackageSpec": {}}]}}',
     b'{"displayName": "\\ud800"}', b'{"displayName": NaN}', b'{"state": 1e400}'],
)  # fmt: skip
async def test_a_body_that_is_no_job_is_a_400_in_googles_format(vertex: Served, body: bytes):
    async with httpx.AsyncClient(base_url=vertex.rest_url, timeout=HANG_SECONDS) as http:
        answer = await http.post(f"/v1/{PARENT}/customJobs", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert answer.json()["error"]["code"] == 400


async def test_addresses_that_do_not_exist_are_answered_in_googles_format(vertex: Served):
    async with httpx.AsyncClient(base_url=vertex.rest_url, timeout=HANG_SECONDS) as http:
        for path in ("/v1/other", f"/v1/{PARENT}/customJobs/1"):
            assert (await http.get(path)).json()["error"]["status"] == "NOT_FOUND"
        assert (await http.put(f"/v1/{PARENT}/customJobs")).status_code == 405
        assert (await http.get(f"/v1/{PARENT}/customJobs?pageSize=many")).status_code == 400


async def test_a_duration_that_json_cannot_say_is_refused(vertex: Served):
    raw = CustomJob.pb(job())
    raw.job_spec.scheduling.timeout.seconds = 2**62
    with pytest.raises(VertexRefusal):
        vertex.backend.create(PARENT, raw)
