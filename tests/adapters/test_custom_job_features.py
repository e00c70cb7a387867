"""Every feature of a CustomJob, from a queue's configuration to what Vertex AI has, over the real wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf import json_format
from pydantic import SecretStr

from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.core.vertex_types import CustomJob
from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.render import render
from prefect_vertex_launch.jobspec.run_spec import parse_run_spec
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.vertex.client import JobServiceAsyncClient, JobServiceGrpcAsyncIOTransport
from prefect_vertex_launch.vertex.jobs import VertexJobs
from tests.sandbox_access import jobs_in, token_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOME = "projects/p/locations/us-central1"
IMAGE, REDUCTION = "us-docker.pkg.dev/p/r/train:1", "us-docker.pkg.dev/p/r/reduction:1"
ACCOUNT = "trainer@p.iam.gserviceaccount.com"
NETWORK = "projects/123/global/networks/vpc"
EXPERIMENT = f"{HOME}/metadataStores/default/contexts/exp"
CPU = {"machine_type": "n1-standard-4"}
L4 = {"machine_type": "g2-standard-8", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1}
PSC = {
    "network_attachment": "projects/p/regions/us-central1/networkAttachments/a",
    "dns_peering_configs": [{"domain": "d.", "target_project": "t", "target_network": "n"}],
}
NFS = {"server": "10.0.0.1", "path": "/data", "mount_point": "data"}
LUSTRE = {"instance_ip": "10.0.0.2", "volume_handle": "v", "filesystem": "fs", "mount_point": "m"}
DISK = {"boot_disk_type": "pd-ssd", "boot_disk_size_gb": 500}
PACKAGE = {
    "executor_image_uri": IMAGE,
    "package_uris": ["gs://bucket/p.tar.gz"],
    "python_module": "trainer.task",
}
KEY_NAME = f"{HOME}/keyRings/r/cryptoKeys/k"
TENSORBOARD = f"{HOME}/tensorboards/1"
MODEL = f"{HOME}/models/7@2"
RUN_ID = "WANDB_RUN_ID"


def pool(image: str = "${image_uri}", replicas: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "machine_spec": CPU, "replica_count": replicas, "container_spec": {"image_uri": image}, **fields,
    }  # fmt: skip


@dataclass(frozen=True)
class Server:
    jobs: VertexJobs
    client: JobServiceAsyncClient
    token: tuple[tuple[str, str], ...]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with Sandbox(is_manual=True) as sandbox:
        jobs = jobs_in(sandbox, submissions_per_minute=10_000)
        channel = grpc.aio.insecure_channel(sandbox.vertex_grpc_url.removeprefix("grpc://"))
        client = JobServiceAsyncClient(transport=JobServiceGrpcAsyncIOTransport(channel=channel))
        yield Server(jobs, client, token_header(sandbox))
        await channel.close()
        await jobs.aclose()


async def as_created(server: Server, plan: int = 0, **sections: Any) -> dict[str, Any]:
    """Launch with these sections; return the job that the server has then, as JSON."""
    run_spec = parse_run_spec(
        {
            "entity": "acme", "project": "p1", "docker": {"docker_image": IMAGE},
            "overrides": {"args": ["--lr", "1"], "entry_point": ["python"]},
        },
        item_id="item-1",
    )  # fmt: skip
    spec = {"worker_pool_specs": [pool()], "staging_bucket": "gs://bucket", **sections.pop("spec", {})}
    config = parse_queue_config({"spec": spec, **sections}).plan(plan)
    context = LaunchContext(
        item_id="item-1", queue=QueueIdentity("api.wandb.ai", "acme", "q"), run_id="run1", image_uri=IMAGE,
        base_url="https://api.wandb.ai", api_key=SecretStr("k" * 40), project="p", location="us-central1",
    )  # fmt: skip
    created = await server.jobs.create(render(run_spec, config, context).job)
    job = await server.client.get_custom_job(name=created.name, metadata=server.token)
    return json_format.MessageToDict(CustomJob.pb(job), preserving_proto_field_name=True)


def env_names(pool: dict[str, Any]) -> set[str]:
    task = pool.get("container_spec") or pool.get("python_package_spec") or {}
    return {variable["name"] for variable in task.get("env", ())}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"run": {"scheduling_strategy": "SPOT"}}, {"scheduling": {"strategy": "SPOT"}}),
        ({"run": {"scheduling_strategy": 3}}, {"scheduling": {"strategy": "STANDARD"}}),
        (
            {"run": {"scheduling_strategy": "FLEX_START", "max_wait_duration": 7200, "timeout": 60}},
            {"scheduling": {"strategy": "FLEX_START", "max_wait_duration": "7200s", "timeout": "60s"}},
        ),
        (
            {"run": {"scheduling_strategy": "FLEX_START", "max_wait_duration": 0}},
            {"scheduling": {"strategy": "FLEX_START", "max_wait_duration": "0s"}},
        ),
        ({"run": {"max_wait_duration": 0}}, {"scheduling": {"max_wait_duration": "0s"}}),
        ({"run": {"disable_retries": True}}, {"scheduling": {"disable_retries": True}}),
        (
            {"run": {"restart_job_on_worker_restart": True}},
            {"scheduling": {"restart_job_on_worker_restart": True}},
        ),
        ({"spec": {"persistent_resource_id": "res"}}, {"persistent_resource_id": "res"}),
        ({"run": {"persistent_resource_id": "res"}}, {"persistent_resource_id": "res"}),
        ({"run": {"psc_interface_config": PSC}}, {"psc_interface_config": PSC}),
        (
            {"run": {"network": NETWORK, "reserved_ip_ranges": ["range-1", "range-2"]}},
            {"network": NETWORK, "reserved_ip_ranges": ["range-1", "range-2"]},
        ),
        (
            {"spec": {"reserved_ip_ranges": ["range-1"]}, "run": {"network": NETWORK}},
            {"network": NETWORK, "reserved_ip_ranges": ["range-1"]},
        ),
        ({"run": {"enable_web_access": True}}, {"enable_web_access": True}),
        ({"spec": {"enable_dashboard_access": True}}, {"enable_dashboard_access": True}),
        ({"run": {"models": [MODEL]}}, {"models": [MODEL]}),
        (
            {"spec": {"protected_artifact_location_id": "us-east1"}},
            {"protected_artifact_location_id": "us-east1"},
        ),
        ({"spec": {"service_account": ACCOUNT}}, {"service_account": ACCOUNT}),
        ({"run": {"service_account": ACCOUNT}}, {"service_account": ACCOUNT}),
        (
            {"run": {"service_account": ACCOUNT, "tensorboard": TENSORBOARD}},
            {"service_account": ACCOUNT, "tensorboard": TENSORBOARD},
        ),
        (
            {"run": {"service_account": ACCOUNT, "experiment": "exp", "experiment_run": "r1"}},
            {"service_account": ACCOUNT, "experiment": EXPERIMENT, "experiment_run": f"{EXPERIMENT}-r1"},
        ),
        (
            {"run": {"service_account": ACCOUNT, "experiment": EXPERIMENT}},
            {"service_account": ACCOUNT, "experiment": EXPERIMENT},
        ),
        (
            {"spec": {"base_output_dir": "gs://bucket/out"}},
            {"base_output_directory": {"output_uri_prefix": "gs://bucket/out"}},
        ),
    ],
)
async def test_an_argument_arrives_as_its_field(
    server: Server, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    plain = (await as_created(server))["job_spec"]
    assert set(plain) == {"worker_pool_specs", "base_output_directory"}
    found = (await as_created(server, **given))["job_spec"]
    assert {name: value for name, value in found.items() if name != "worker_pool_specs"} == {
        "base_output_directory": plain["base_output_directory"], **expected,
    }  # fmt: skip


async def test_a_key_encrypts_the_job(server: Server) -> None:
    job = await as_created(server, spec={"encryption_spec_key_name": KEY_NAME})
    assert job["encryption_spec"] == {"kms_key_name": KEY_NAME}


async def test_machines_disks_and_mounts_arrive(server: Server) -> None:
    machine = {
        **L4, "reservation_affinity": {
            "reservation_affinity_type": "SPECIFIC_RESERVATION", "key": "k", "values": ["r"],
        },
    }  # fmt: skip
    given = pool(machine_spec=machine, disk_spec=DISK, nfs_mounts=[NFS], lustre_mounts=[LUSTRE])
    job = await as_created(server, spec={"worker_pool_specs": [given]}, run={"network": NETWORK})
    (found,) = job["job_spec"]["worker_pool_specs"]
    assert (found["machine_spec"], found["disk_spec"]) == (machine, DISK)
    assert (found["nfs_mounts"], found["lustre_mounts"]) == ([NFS], [LUSTRE])
    assert found["replica_count"] == "1"


async def test_a_pool_of_packages_runs_the_launch_without_a_command(server: Server) -> None:
    given = {"machine_spec": CPU, "replica_count": 1, "python_package_spec": PACKAGE}
    job = await as_created(server, spec={"worker_pool_specs": [given]})
    (found,) = job["job_spec"]["worker_pool_specs"]
    assert "container_spec" not in found
    package = found["python_package_spec"]
    assert {name: package[name] for name in PACKAGE} == PACKAGE
    assert package["args"] == ["--lr", "1"]
    assert RUN_ID in env_names(found)


async def test_roles_keep_their_places_and_only_one_pool_is_the_run(server: Server) -> None:
    servers = pool(REDUCTION, replicas=2, machine_spec={"machine_type": "n1-highcpu-16"})
    job = await as_created(server, spec={"worker_pool_specs": [pool(), {}, servers, pool(replicas=3)]})
    chief, workers, reduction, evaluator = job["job_spec"]["worker_pool_specs"]
    assert workers == {}
    assert reduction == {**servers, "replica_count": "2"}
    assert chief["container_spec"]["command"] == evaluator["container_spec"]["command"] == ["python"]
    assert RUN_ID in env_names(chief)
    assert env_names(evaluator) - env_names(chief) == {"WANDB_RUN_GROUP"}
    assert RUN_ID not in env_names(evaluator)


@pytest.mark.parametrize(
    ("launch", "with_run_id"),
    [
        ({"command_pools": "all"}, [True, False]),
        ({"command_pools": [1]}, [False, True]),
        ({"command_pools": "all", "run_id_replicas": "all"}, [True, True]),
    ],
)
async def test_the_pools_of_the_launch_are_those_of_its_options(
    server: Server, launch: dict[str, Any], with_run_id: list[bool]
) -> None:
    job = await as_created(server, spec={"worker_pool_specs": [pool(), pool(REDUCTION)]}, launch=launch)
    assert [RUN_ID in env_names(each) for each in job["job_spec"]["worker_pool_specs"]] == with_run_id


async def test_a_fallback_arrives_in_place_of_what_is_written(server: Server) -> None:
    launch = {"fallbacks": [{"machine_spec": L4, "run": {"scheduling_strategy": "STANDARD"}}]}
    run = {"scheduling_strategy": "SPOT", "timeout": 60}
    job = (await as_created(server, plan=1, run=run, launch=launch))["job_spec"]
    assert job["scheduling"] == {"strategy": "STANDARD", "timeout": "60s"}
    assert job["worker_pool_specs"][0]["machine_spec"] == L4
