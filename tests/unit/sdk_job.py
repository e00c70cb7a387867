"""Configurations that Vertex AI takes, and what the SDK's own CustomJob would send for a launch with one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform.metadata.experiment_run_resource import _format_experiment_run_resource_id
from google.cloud.aiplatform_v1.services.metadata_service import MetadataServiceClient
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.core.vertex_types import AcceleratorType, CustomJob, CustomJobSpec, Scheduling
from prefect_vertex_launch.jobspec.config.arguments import EXTRA_ARGUMENTS
from prefect_vertex_launch.jobspec.config.machine_types import MACHINE_TYPES
from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.environment import launch_environment
from prefect_vertex_launch.jobspec.render import Rendering, render
from prefect_vertex_launch.jobspec.run_spec import RunSpec, parse_run_spec

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
# Fields that the SDK does not reach: where they stand, and their values.
extras = st.tuples(
    st.sampled_from(["spec", "run"]),
    st.fixed_dictionaries(
        {},
        optional={
            "reserved_ip_ranges": st.none() | st.lists(names, max_size=2),
            "enable_dashboard_access": st.none() | st.booleans(),
            "protected_artifact_location_id": st.none() | st.just("europe-west4"),
            "models": st.none() | st.just(["projects/p/locations/l/models/1@2"]),
        },
    ),
)
tracking = st.one_of(
    st.just({}),
    st.just({"tensorboard": "projects/p/locations/l/tensorboards/1"}),
    st.fixed_dictionaries({"experiment": names}, optional={"experiment_run": names}),
)

CONTEXT = LaunchContext(
    item_id="item-1",
    queue=QueueIdentity("api.wandb.ai", "acme", "vertex"),
    run_id="run1",
    image_uri=IMAGE,
    base_url="https://api.wandb.ai",
    api_key=SecretStr("k" * 40),
    project=PROJECT,
    location=LOCATION,
)


def variables_of(environment: dict[str, str], *, is_the_run: bool) -> list[dict[str, str]]:
    """Return the launch's variables for a pool: only one of the pools is the W&B run."""
    if not is_the_run:
        of_the_run = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_LAUNCH_TRACE_ID")
        environment = {key: value for key, value in environment.items() if key not in of_the_run}
        environment["WANDB_RUN_GROUP"] = "run1"
    return [{"name": key, "value": value} for key, value in environment.items()]


def pools_as_launched(
    spec: dict[str, Any], environment: dict[str, str], args: list[str]
) -> list[dict[str, Any]]:
    """Return the pools as a person would write them by hand for this launch."""
    written: list[dict[str, Any]] = []
    is_the_run = True
    for pool in spec["worker_pool_specs"]:
        task = pool.get("container_spec")
        if task is None or task["image_uri"] not in ("${image_uri}", IMAGE):
            written.append(pool)
            continue
        env = [*(task.get("env") or []), *variables_of(environment, is_the_run=is_the_run)]
        is_the_run = False
        launched = {**task, "image_uri": IMAGE, "env": env} | ({"args": args} if args else {})
        written.append({**pool, "container_spec": launched})
    return written


def environment_as_launched(run_spec: RunSpec, run: dict[str, Any]) -> dict[str, str]:
    """Return the run's variables: it can be taken up again where Vertex AI restarts the container."""
    restarts = run.get("scheduling_strategy") in ("SPOT", 4) or run.get("restart_job_on_worker_restart")
    return launch_environment(
        run_spec, CONTEXT, may_start_again=bool(restarts and not run.get("disable_retries"))
    )


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


def without_nulls(value: Any) -> Any:
    """Return the value without the members that are null: that is the same as nothing."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    return [without_nulls(member) for member in value] if isinstance(value, list) else value


def without_extras(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in EXTRA_ARGUMENTS}


def read_run_spec(spec: dict[str, Any], run: dict[str, Any], args: list[str]) -> RunSpec:
    return parse_run_spec(
        {
            "entity": "acme", "project": "p", "docker": {"docker_image": IMAGE}, "name": "the run",
            "overrides": {"args": args}, "resource_args": {"vertex": {"spec": spec, "run": run}},
        },
        item_id="item-1",
    )  # fmt: skip


def assert_equal(spec: dict[str, Any], run: dict[str, Any], args: list[str]) -> None:
    """Render a launch, submit the same with the SDK, and compare what each would send.

    What the SDK does not take is put into what it sends. Labels are the rendering's.
    """
    run_spec = read_run_spec(spec, run, args)
    rendering = render(run_spec, parse_queue_config(run_spec.resource_args), CONTEXT)
    sent = sent_by_the_sdk(run_spec, without_nulls(spec), without_nulls(run), rendering)
    assert CustomJob.pb(rendering.job) == sent["custom_job"]
    assert rendering.parent == sent["parent"]
    assert rendering.create_timeout_seconds == sent["timeout"]


def sent_by_the_sdk(
    run_spec: RunSpec, spec: dict[str, Any], run: dict[str, Any], rendering: Rendering
) -> dict[str, Any]:
    job = RecordedJob(
        **{key: value for key, value in without_extras(spec).items() if key != "service_account"}
        | {
            "display_name": spec.get("display_name") or "the run",
            "worker_pool_specs": pools_as_launched(
                spec, environment_as_launched(run_spec, run), list(run_spec.overrides.args)
            ),
            "labels": dict(rendering.job.labels),
            "base_output_dir": spec.get("base_output_dir")
            or rendering.job.job_spec.base_output_directory.output_uri_prefix,
            "project": PROJECT,
            "location": LOCATION,
        },
        credentials=AnonymousCredentials(),
    )
    account = {"service_account": run.get("service_account") or spec.get("service_account")}
    submitted = {key: value for key, value in without_extras(run).items() if key != "sync"}
    job.submit(**submitted | account | sdk_experiment(run))
    sent = RecordedJob.client.sent
    extra = {key: run.get(key) or spec.get(key) for key in EXTRA_ARGUMENTS}
    sent["custom_job"].job_spec.MergeFrom(CustomJobSpec.pb(CustomJobSpec(**extra)))
    return sent
