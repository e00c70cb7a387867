"""The rendered job is, field by field, what the SDK's own CustomJob would send for the same arguments."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform.metadata.experiment_run_resource import _format_experiment_run_resource_id
from google.cloud.aiplatform_v1.services.metadata_service import MetadataServiceClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from vertex_launch.environment import launch_environment
from vertex_launch.machine_types import MACHINE_TYPES
from vertex_launch.queue_config import RUN_ARGUMENTS, SPEC_ARGUMENTS, parse_queue_config
from vertex_launch.render import LaunchContext, render
from vertex_launch.run_spec import parse_run_spec
from vertex_launch.vertex_types import AcceleratorType, CustomJob, Scheduling

PROJECT, LOCATION, IMAGE = "my-project", "us-central1", "us-docker.pkg.dev/p/r/train:1"
OTHER_IMAGE = "us-docker.pkg.dev/p/r/reduction:1"


class RecordingClient:
    """Takes the place of the job service's client: what reaches it is what would be sent."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def create_custom_job(self, *, parent: str, custom_job: Any, timeout: float | None) -> Any:
        self.sent = {"parent": parent, "custom_job": CustomJob.pb(custom_job), "timeout": timeout}
        return CustomJob(name=f"{parent}/customJobs/1", display_name=custom_job.display_name)


class RecordedJob(aiplatform.CustomJob):
    """The SDK's CustomJob, with a recording client at its network boundary."""

    client = RecordingClient()

    @classmethod
    def _instantiate_client(cls, *_args: Any, **_kwargs: Any) -> Any:
        return cls.client


words = st.text(st.characters(codec="utf-8", exclude_characters="\0$"), max_size=12)
names = st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True)
variables = st.lists(
    st.fixed_dictionaries({"name": st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), "value": words}),
    max_size=3,
    unique_by=lambda variable: variable["name"],
)


@st.composite
def machines(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(MACHINE_TYPES)))
    machine = MACHINE_TYPES[name]
    spec: dict[str, Any] = {"machine_type": name}
    if machine.accelerators and (machine.required or draw(st.booleans())):
        kind = draw(st.sampled_from(sorted(machine.accelerators)))
        spec["accelerator_type"] = draw(st.sampled_from([AcceleratorType(kind).name, int(kind)]))
        spec["accelerator_count"] = draw(st.sampled_from(machine.accelerators[kind]))
    if draw(st.booleans()):
        spec["reservation_affinity"] = draw(
            st.sampled_from([
                {"reservation_affinity_type": "ANY_RESERVATION"},
                {"reservation_affinity_type": 3, "key": "name", "values": ["r1", "r2"]},
            ])
        )  # fmt: skip
    if machine.topology:
        spec["tpu_topology"] = "2x2"
    return spec


tasks = st.one_of(
    st.fixed_dictionaries(
        {"image_uri": st.sampled_from(["${image_uri}", IMAGE, OTHER_IMAGE])},
        optional={
            "command": st.lists(words, max_size=3),
            "args": st.none() | st.lists(words, max_size=3),
            "env": st.none() | variables,
        },
    ).map(lambda task: {"container_spec": task}),
    st.fixed_dictionaries(
        {
            "executor_image_uri": st.just(OTHER_IMAGE),
            "package_uris": st.lists(words.map("gs://b/{}".format), min_size=1, max_size=2),
            "python_module": names,
        },
        optional={"args": st.lists(words, max_size=2), "env": variables},
    ).map(lambda task: {"python_package_spec": task}),
)


def pools(primary: bool) -> st.SearchStrategy[dict[str, Any]]:
    extras = st.fixed_dictionaries(
        {"machine_spec": machines(), "replica_count": st.just(1) if primary else st.integers(1, 9)},
        optional={
            "disk_spec": st.fixed_dictionaries(
                {},
                optional={"boot_disk_type": st.just("pd-ssd"), "boot_disk_size_gb": st.integers(100, 64000)},
            ),
            "nfs_mounts": st.just([{"server": "10.0.0.1", "path": "/x", "mount_point": "m"}]),
            "lustre_mounts": st.just(
                [{"instance_ip": "10.0.0.2", "volume_handle": "v", "filesystem": "f", "mount_point": "m"}]
            ),
        },
    )
    return st.tuples(tasks, extras).map(lambda parts: {**parts[0], **parts[1]})


specs = st.fixed_dictionaries(
    {
        "worker_pool_specs": st.tuples(pools(True), st.lists(st.just({}) | pools(False), max_size=3)).map(
            lambda parts: [parts[0], *parts[1]]
        ),
        "staging_bucket": st.sampled_from(["gs://my-bucket", "gs://my-bucket/sub/"]),
    },
    optional={
        "display_name": st.just("a name") | words,
        "base_output_dir": st.none() | st.just("gs://my-bucket/out"),
        "project": st.just(PROJECT),
        "location": st.just(LOCATION),
        "labels": st.none() | st.dictionaries(names, names, max_size=3),
        "encryption_spec_key_name": st.just(f"projects/p/locations/{LOCATION}/keyRings/r/cryptoKeys/k"),
        "persistent_resource_id": names,
        "service_account": st.just("a@p.iam.gserviceaccount.com"),
    },
)
strategies = st.sampled_from([member.name for member in Scheduling.Strategy]) | st.sampled_from(
    [int(member) for member in Scheduling.Strategy]
)
runs = st.fixed_dictionaries(
    {"service_account": st.just("a@p.iam.gserviceaccount.com")},
    optional={
        "network": st.just("projects/123/global/networks/n"),
        "timeout": st.none() | st.integers(0, 10**6),
        "restart_job_on_worker_restart": st.booleans(),
        "enable_web_access": st.booleans(),
        "sync": st.booleans(),
        "create_request_timeout": st.none() | st.floats(0.5, 600),
        "disable_retries": st.booleans(),
        "persistent_resource_id": names,
        "scheduling_strategy": st.none() | strategies,
        "max_wait_duration": st.none() | st.integers(0, 10**6),
        "psc_interface_config": st.just({
            "network_attachment": "projects/p/regions/r/networkAttachments/a",
            "dns_peering_configs": [{"domain": "d.", "target_project": "t", "target_network": "n"}],
        }),
    },
)  # fmt: skip
tracking = st.one_of(
    st.just({}),
    st.just({"tensorboard": "projects/p/locations/l/tensorboards/1"}),
    st.fixed_dictionaries({"experiment": names}, optional={"experiment_run": names}),
)

CONTEXT = LaunchContext(
    item_id="item-1",
    queue_entity="acme",
    queue_name="vertex",
    run_id="run1",
    image_uri=IMAGE,
    base_url="https://api.wandb.ai",
    api_key=SecretStr("k" * 40),
    project=PROJECT,
    location=LOCATION,
)


def pools_as_launched(
    spec: dict[str, Any], environment: dict[str, str], args: list[str]
) -> list[dict[str, Any]]:
    """Return the pools as a person would write them by hand for this launch."""
    written: list[dict[str, Any]] = []
    for pool in spec["worker_pool_specs"]:
        task = pool.get("container_spec")
        if task is None or task["image_uri"] == OTHER_IMAGE:
            written.append(pool)
            continue
        env = [*(task.get("env") or []), *({"name": k, "value": v} for k, v in environment.items())]
        launched = {**task, "image_uri": IMAGE, "env": env} | ({"args": args} if args else {})
        written.append({**pool, "container_spec": launched})
    return written


def sdk_experiment(run: dict[str, Any]) -> dict[str, Any]:
    """Return objects with the resource names as the SDK forms them; names it would look up."""

    def context(name: str) -> Any:
        return SimpleNamespace(
            resource_name=MetadataServiceClient.context_path(PROJECT, LOCATION, "default", name)
        )

    found: dict[str, Any] = {}
    if experiment := run.get("experiment"):
        found["experiment"] = context(experiment)
        if experiment_run := run.get("experiment_run"):
            found["experiment_run"] = context(_format_experiment_run_resource_id(experiment, experiment_run))
    return found


def assert_equal(spec: dict[str, Any], run: dict[str, Any], args: list[str]) -> None:
    """Render a launch, submit the same with the SDK, and compare what each would send."""
    run_spec = parse_run_spec(
        {
            "entity": "acme", "project": "p", "docker": {"docker_image": IMAGE}, "name": "the run",
            "overrides": {"args": args}, "resource_args": {"vertex": {"spec": spec, "run": run}},
        },
        item_id="item-1",
    )  # fmt: skip
    rendering = render(run_spec, parse_queue_config(run_spec.resource_args), CONTEXT)

    job = RecordedJob(
        **{key: value for key, value in spec.items() if key != "service_account"}
        | {
            "display_name": spec.get("display_name") or "the run",
            "worker_pool_specs": pools_as_launched(spec, launch_environment(run_spec, CONTEXT), args),
            "labels": dict(rendering.job.labels),
            "base_output_dir": spec.get("base_output_dir")
            or rendering.job.job_spec.base_output_directory.output_uri_prefix,
            "project": PROJECT,
            "location": LOCATION,
        },
        credentials=AnonymousCredentials(),
    )
    account = {"service_account": spec["service_account"]} if "service_account" in spec else {}
    submitted = {key: value for key, value in run.items() if key != "sync"}
    job.submit(**account | submitted | sdk_experiment(run))

    sent = RecordedJob.client.sent
    assert CustomJob.pb(rendering.job) == sent["custom_job"]
    assert rendering.parent == sent["parent"]
    assert rendering.create_timeout_seconds == sent["timeout"]
    assert (spec.get("labels") or {}).items() <= dict(rendering.job.labels).items()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs, runs, tracking, st.lists(words, max_size=2))
def test_the_rendered_job_equals_what_the_sdk_sends(
    spec: dict[str, Any], run: dict[str, Any], tracked: dict[str, Any], args: list[str]
) -> None:
    assert_equal(spec, {**run, **tracked}, args)


PLAIN: dict[str, Any] = {
    "worker_pool_specs": [
        {
            "machine_spec": {"machine_type": "n1-standard-4"},
            "replica_count": 1,
            "container_spec": {"image_uri": IMAGE},
        }
    ],
    "staging_bucket": "gs://my-bucket",
}


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"max_wait_duration": 0},
        {"timeout": 0},
        {"timeout": 1},
        {"scheduling_strategy": 0},
        {"scheduling_strategy": "STRATEGY_UNSPECIFIED"},
        {"disable_retries": False, "restart_job_on_worker_restart": False, "enable_web_access": False},
        {"restart_job_on_worker_restart": True},
        {"network": "", "persistent_resource_id": "", "service_account": ""},
        {"psc_interface_config": {}},
    ],
)
def test_an_argument_that_means_little_by_itself_is_sent_as_the_sdk_does(run: dict[str, Any]) -> None:
    assert_equal(PLAIN, run, [])


def test_a_service_account_of_spec_is_sent() -> None:
    assert_equal({**PLAIN, "service_account": "a@p.iam.gserviceaccount.com"}, {}, [])


@pytest.mark.parametrize(
    ("ours", "function"),
    [(SPEC_ARGUMENTS, aiplatform.CustomJob.__init__), (RUN_ARGUMENTS, aiplatform.CustomJob.run)],
    ids=["spec", "run"],
)
def test_every_argument_of_the_installed_sdk_is_known(ours: Any, function: Any) -> None:
    assert set(ours) == set(inspect.signature(function).parameters) - {"self"}


def test_submit_takes_what_run_takes_but_sync() -> None:
    assert set(RUN_ARGUMENTS) - {"sync"} == set(inspect.signature(aiplatform.CustomJob.submit).parameters) - {
        "self"
    }


def test_every_accelerator_in_the_table_is_one_of_the_sdk() -> None:
    fitting = {kind for machine in MACHINE_TYPES.values() for kind in machine.accelerators}
    assert fitting <= set(AcceleratorType)
