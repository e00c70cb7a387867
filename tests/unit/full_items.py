"""Items that are as large as one may be, each of them full of one thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect_vertex_launch.core.json_value import MAX_SPEC_BYTES
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults, parse_queue_config
from prefect_vertex_launch.jobspec.locks import Locks
from prefect_vertex_launch.jobspec.render import Rendering, render
from prefect_vertex_launch.jobspec.run_spec import parse_run_spec
from prefect_vertex_launch.jobspec.sweeps import scheduler_resource_args
from tests.unit.rendered_launch import IMAGE, launch_context, pool

# What is left of an item beside the rest of it.
FULL = MAX_SPEC_BYTES - 6_000
# Every lock, with patterns of several gaps, and words of the block's own that nothing fits.
LOCKS = Locks.of(
    secure_mode=True, images=["a*b*c*d"] * 20, entry_points=["a*b*c*d"] * 20, commands=["a*b*c*d"] * 20,
    service_accounts=["a*b*c*d"] * 20, networks=["a*b*c*d"] * 20, machine_types=["a*b*c*d"] * 20,
)  # fmt: skip
OWN = QueueDefaults(
    spec={
        "worker_pool_specs": [
            pool(
                command=["a${run_id}b${run_id}c${run_id}d"] * 50,
                env=[{"name": "A", "value": "${run_id}/" * 50}],
            )
        ]
    },
    run={},
    staging_bucket="gs://bucket-1",
)


def many(text: str, size_bytes: int = 0) -> list[Any]:
    """Return as many of a text as fit."""
    return [text] * ((size_bytes or FULL) // (len(text.encode()) + 3))


def keys(value: Any = 1, prefix: str = "x", size_bytes: int = 0) -> dict[str, Any]:
    """Return as many different keys as fit."""
    return {
        f"{prefix}{number}": value for number in range((size_bytes or FULL) // (len(f"{prefix}{value}") + 10))
    }


def variables(count: int, name: str = "A", value: str = "1") -> list[dict[str, Any]]:
    return [{"name": f"{name}{number}", "value": value} for number in range(count)]


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def item(
    *pools: Any, spec: Any = None, run: Any = None, options: Any = None, more: Any = None, **changes: Any
) -> dict[str, Any]:
    """Return a run spec with its resource args, good but for what is changed."""
    arguments = {"worker_pool_specs": list(pools) or [pool()], "staging_bucket": "gs://b-1", **(spec or {})}
    resource_args = {"spec": arguments, "run": run or {}, "launch": options or {}, **(more or {})}
    return {
        "entity": "acme", "project": "P1", "docker": {"docker_image": IMAGE},
        "resource_args": {"vertex": resource_args}, **changes,
    }  # fmt: skip


def with_machine(**fields: Any) -> dict[str, Any]:
    return {**pool(), "machine_spec": {"machine_type": "n1-standard-4", **fields}}


def with_fallbacks(*pools: Any, count: int = 10, spec: Any = None, run: Any = None) -> dict[str, Any]:
    fallbacks = [{"machine_spec": {"machine_type": f"x{number}-standard-4"}} for number in range(count)]
    return item(*pools, spec=spec, run=run, options={"fallbacks": fallbacks})


def overrides(**fields: Any) -> dict[str, Any]:
    return item(overrides=fields)


def scheduler(**fields: Any) -> dict[str, Any]:
    return {
        "entity": "acme", "project": "P1", "uri": "placeholder-uri-scheduler", "run_id": "s" * 128,
        "docker": {"docker_image": "python"}, "resource": "local-process", **fields,
    }  # fmt: skip


SHAPES: dict[str, Callable[[], dict[str, Any]]] = {
    # The launch's own words.
    "args": lambda: overrides(args=many("a")),
    "args of numbers": lambda: overrides(args=[1] * (FULL // 2)),
    "args of fractions": lambda: overrides(args=[0.5] * (FULL // 5)),
    "args that are no words": lambda: overrides(args=[None] * (FULL // 5)),
    "args with references": lambda: overrides(args=many("$(A)")),
    "args in another alphabet": lambda: overrides(args=many("ä")),
    "entry point": lambda: overrides(entry_point=many("a")),
    "entry point of quotes": lambda: overrides(entry_point=many("'")),
    "a long word": lambda: overrides(entry_point=["ab" * (FULL // 2)]),
    "run config": lambda: overrides(run_config=keys()),
    "run config of lists": lambda: overrides(run_config={"a": [[]] * (FULL // 3)}),
    "run config of depth": lambda: overrides(run_config={"a": [nested(90)] * (FULL // 300)}),
    "run config of dollars": lambda: overrides(run_config={"a": "$(" * (FULL // 2)}),
    "run config in four pools": lambda: item(
        pool(),
        *[pool()] * 3,
        options={"command_pools": "all"},
        overrides={"run_config": keys()},
    ),
    "files": lambda: overrides(files=keys()),
    "artifacts": lambda: overrides(artifacts=keys()),
    "unknown overrides": lambda: overrides(**keys()),
    "run name": lambda: item(name="$" * FULL),
    "run name of other letters": lambda: item(name="Ä" * (FULL // 2)),
    "author": lambda: item(author="$(" * (FULL // 2)),
    "image": lambda: item(docker={"docker_image": "a/" * (FULL // 2) + "A"}),
    "image of dashes": lambda: item(docker={"docker_image": "a-" * (FULL // 2) + "!"}),
    "image of dots": lambda: item(docker={"docker_image": "a." * (FULL // 2) + "!"}),
    "image of underscores": lambda: item(docker={"docker_image": "a__" * (FULL // 3) + "!"}),
    "image of spaces": lambda: item(docker={"docker_image": " " * FULL}),
    "job": lambda: item(docker=None, job="a/" * (FULL // 2)),
    "project": lambda: item(project="p/" * (FULL // 2)),
    "entity": lambda: item(entity="/" * FULL),
    "run id": lambda: item(run_id=":" * FULL),
    "sweep": lambda: item(sweep_id="s" * FULL),
    "resource": lambda: item(resource="v" * FULL),
    "resume count": lambda: item(_resume_count=1 << 1_023),
    "unknown keys": lambda: item(**keys()),
    "misspelled keys": lambda: item(
        **{f"entit{'y' * (number % 90)}{number}": 1 for number in range(FULL // 60)}
    ),
    "unknown keys of docker": lambda: item(docker={"docker_image": IMAGE, **keys()}),
    "unknown resources": lambda: {
        **item(),
        "resource_args": {"vertex": item()["resource_args"]["vertex"], **keys()},
    },
    "template variables": lambda: item(template_variables=keys()),
    "a long key": lambda: item(**{"k" * FULL: 1}),
    "git": lambda: item(git=keys(None, size_bytes=FULL * 4 // 5)),
    # The queue's configuration.
    "unknown sections": lambda: item(more=keys()),
    "unknown arguments": lambda: item(spec=keys()),
    "unknown arguments of run": lambda: item(run=keys()),
    "long unknown arguments": lambda: item(spec={f"{'n' * 95}{number}": 1 for number in range(FULL // 110)}),
    "unknown launch keys": lambda: item(options=keys()),
    "pools": lambda: item(pool(), *[{}] * (FULL // 3)),
    "null pools": lambda: item(pool(), *[None] * (FULL // 5)),
    "pools of numbers": lambda: item(pool(), *[1] * (FULL // 2)),
    "unknown keys of a pool": lambda: item({**pool(), **keys()}),
    "unknown keys of a machine": lambda: item(with_machine(**keys())),
    "machine type": lambda: item(with_machine(machine_type="n" * FULL)),
    "accelerator": lambda: item(with_machine(accelerator_type="N" * FULL, accelerator_count=1)),
    "number of accelerators": lambda: item(with_machine(accelerator_count=1 << 1_000)),
    "reservations": lambda: item(
        with_machine(reservation_affinity={"reservation_affinity_type": 3, "key": "k", "values": many("a")})
    ),
    "variables": lambda: item(pool(env=[{}] * (FULL // 3))),
    "named variables": lambda: item(pool(env=variables(FULL // 35))),
    "a hundred variables in each pool": lambda: with_fallbacks(
        pool(env=variables(100, value="v" * 1_000)), *[pool(env=variables(100, value="v" * 1_000))] * 3
    ),
    "secrets": lambda: item(*[pool(env=variables(80, "KEY", f"{n}" + "s" * 1_300)) for n in range(4)]),
    "different secrets": lambda: item(
        *[
            pool(env=[{"name": f"KEY{i}", "value": f"{n}-{i:03}-secret"} for i in range(80)])
            for n in range(4)
        ],
        overrides={"run_config": {"a": "x" * (FULL - 60_000)}},
        options={"command_pools": "all"},
    ),
    "secrets in a large job": lambda: item(
        pool(
            env=[{"name": f"KEY{i}", "value": f"{'n' * 11}{i:03}{'n' * 99}"} for i in range(80)],
            args=many("${author}", 30_000),
        ),
        *[
            pool(
                "x",
                env=[{"name": f"KEY{i}", "value": f"{'n' * 11}{n}{i:03}{'n' * 99}"} for i in range(100)],
                count=1,
            )
            for n in range(3)
        ],
        author="n" * 1_500,
    ),
    "secrets of one letter": lambda: item(
        pool(
            env=[{"name": f"KEY{i}", "value": "a" * (24 + i)} for i in range(80)],
            args=["a" * (FULL - 20_000)],
        )
    ),
    "secrets filled in": lambda: item(
        pool(env=[{"name": f"KEY{i}", "value": f"{i}{'${run_name}' * 100}"} for i in range(80)]),
        name="n" * 400,
    ),
    "queue's args": lambda: item(pool(args=many("a"))),
    "queue's args with one wrong": lambda: with_fallbacks(pool(args=[*many("a"), 1])),
    "queue's args, with fallbacks": lambda: with_fallbacks(pool(args=many("a"))),
    "queue's args of numbers": lambda: item(pool(args=[1] * (FULL // 2))),
    "queue's args of references": lambda: item(pool(args=many("$(A)"), env=variables(2, ""))),
    "queue's command": lambda: item(pool(command=many("a"))),
    "four pools of args": lambda: with_fallbacks(
        pool(args=many("a", FULL // 4)), *[pool(args=many("a", FULL // 4))] * 3
    ),
    "packages": lambda: item(
        {
            "machine_spec": {"machine_type": "n1-standard-4"},
            "replica_count": 1,
            "python_package_spec": {
                "executor_image_uri": IMAGE,
                "python_module": "m",
                "package_uris": many("a"),
            },
        }
    ),
    "mounts": lambda: with_fallbacks({**pool(), "nfs_mounts": [{}] * (FULL // 3)}),
    "good mounts": lambda: with_fallbacks(
        {**pool(), "nfs_mounts": [{"server": "s", "path": "/", "mount_point": "m"}] * (FULL // 50)}
    ),
    "other mounts": lambda: item({**pool(), "lustre_mounts": [{"mount_point": "m"}] * (FULL // 22)}),
    "labels": lambda: item(spec={"labels": keys("", size_bytes=FULL * 9 // 10)}),
    "labels in form": lambda: item(spec={"labels": keys("A", "K", size_bytes=FULL * 9 // 10)}),
    "a long label": lambda: item(spec={"labels": {"k": "Ä" * (FULL // 2)}}),
    "a long label's key": lambda: item(spec={"labels": {"ä" * (FULL // 2): ""}}),
    "labels that are no texts": lambda: item(spec={"labels": keys([], size_bytes=FULL * 9 // 10)}),
    "ranges": lambda: item(run={"reserved_ip_ranges": many("A")}),
    "good ranges": lambda: with_fallbacks(run={"reserved_ip_ranges": many("a")}),
    "models": lambda: with_fallbacks(run={"models": many("projects/p/locations/l/models/m")}),
    "peerings": lambda: with_fallbacks(
        run={"psc_interface_config": {"dns_peering_configs": [{"domain": "a."}] * (FULL // 18)}}
    ),
    "account": lambda: item(run={"service_account": "a@" + "." * FULL + "@"}),
    "network": lambda: item(run={"network": "projects/" + "p/" * (FULL // 2)}),
    "tensorboard": lambda: item(run={"tensorboard": "projects/" * (FULL // 9)}),
    "experiment": lambda: item(
        run={"experiment": "projects/p/locations/l/metadataStores/" + "a" * FULL + "/"}
    ),
    "experiment run": lambda: item(run={"experiment": "e", "experiment_run": "a" * FULL}),
    "bucket": lambda: item(spec={"staging_bucket": "gs://b-1/" + "a/" * (FULL // 2)}),
    "bucket of slashes": lambda: item(spec={"staging_bucket": "/" * FULL}),
    "resource id": lambda: item(run={"persistent_resource_id": "a-" * (FULL // 2)}),
    "key": lambda: item(spec={"encryption_spec_key_name": "projects/" + "a" * FULL}),
    "strategy": lambda: item(run={"scheduling_strategy": "S" * FULL}),
    "timeout": lambda: item(run={"timeout": "1" * FULL}),
    "display name": lambda: item(spec={"display_name": "n" * FULL}),
    # How a launch goes into its job.
    "pool indices": lambda: item(options={"command_pools": [0] * (FULL // 2)}),
    "different pool indices": lambda: item(options={"command_pools": list(range(FULL // 7))}),
    "pool indices that are none": lambda: item(options={"command_pools": [True] * (FULL // 5)}),
    "replicas": lambda: item(options={"run_id_replicas": "a" * FULL}),
    "fallbacks": lambda: item(options={"fallbacks": [{}] * (FULL // 3)}),
    "fallbacks with args": lambda: item(
        options={
            "fallbacks": [
                {
                    "location": "us-east1",
                    "spec": {"worker_pool_specs": [pool(args=many("a", FULL // 10 - 300))]},
                }
            ]
            * 10
        }
    ),
    "fallbacks with unknown keys": lambda: item(options={"fallbacks": [keys(size_bytes=FULL // 10)] * 10}),
    "fallbacks with an unknown argument each": lambda: item(
        options={"fallbacks": [{"spec": keys(size_bytes=1_300)}] * 10}
    ),
    "base of many problems with fallbacks": lambda: with_fallbacks({**pool(), **keys(size_bytes=1_000)}),
    # Macros.
    "unknown macros": lambda: item(pool(args=many("${a}"))),
    "different unknown macros": lambda: item(pool(args=[f"${{a{n}}}" for n in range(FULL // 13)])),
    "unknown macros in one text": lambda: item(pool(args=["${a}" * (FULL // 4)])),
    "unknown macros where none may be": lambda: item(spec={"display_name": "${a}" * (FULL // 4)}),
    "unknown macros in the value of a variable": lambda: item(
        pool(env=[{"name": "A", "value": "${a}" * (FULL // 4)}])
    ),
    "known macros": lambda: item(pool(args=many("${author}"))),
    "known macros in one text": lambda: item(pool(args=["${author}" * (FULL // 9)])),
    "known macros with dollars": lambda: item(
        pool(env=[{"name": "A", "value": "$${author}" * (FULL // 11)}]), author="$("
    ),
    "macros of a large job": lambda: item(pool(args=many("${author}", FULL - 4_000)), author="n" * 80),
    "macros of a job that is too large": lambda: item(
        pool(args=["${author}" * (FULL // 20)]), author="n" * (FULL // 2)
    ),
    "macros in labels": lambda: item(
        spec={"labels": keys("${run_name}", size_bytes=30_000)}, name="n" * 9_000
    ),
    "macros that are open": lambda: item(pool(args=["${" * (FULL // 2)])),
    "a long macro": lambda: item(pool(args=["${" + "a" * FULL + "}"])),
    "a long macro where none may be": lambda: item(spec={"display_name": "${" + "a" * FULL + "}"}),
    # A sweep's scheduler.
    "scheduler's args": lambda: scheduler(overrides={"args": many("a")}),
    "scheduler's placeholders": lambda: scheduler(overrides={"args": many("WANDB_SWEEP_ID")}),
    "scheduler's sweep args": lambda: scheduler(
        overrides={"run_config": {"sweep_args": keys("WANDB_SWEEP_ID", size_bytes=FULL // 2)}}
    ),
    "scheduler's entry point": lambda: scheduler(
        overrides={"entry_point": ["wandb", "scheduler", "s", *many("a")]}
    ),
    "scheduler's name": lambda: scheduler(name="WANDB_SWEEP_ID" * (FULL // 14)),
    "scheduler's resources": lambda: scheduler(resource_args=keys()),
}


def whole_way(payload: dict[str, Any], *, is_locked: bool) -> list[Rendering]:
    """Take an item from its run spec to the jobs of its first and last plan, and to what people see of them.

    Raises InvalidRunSpec or InvalidQueueConfig for one that is refused.
    """
    run_spec = parse_run_spec(payload, item_id="item-1")
    arguments = run_spec.resource_args
    if run_spec.is_scheduler:
        arguments = scheduler_resource_args(run_spec, QueueDefaults({}, {}, staging_bucket="gs://b-1"))
    config = parse_queue_config(arguments)
    locks = {"locks": LOCKS, "block_defaults": OWN} if is_locked else {}
    context = launch_context(image_uri=run_spec.image_uri or IMAGE, **locks)
    plans = sorted({0, len(config.launch.fallbacks)})
    renderings = [render(run_spec, config.plan(plan), context) for plan in plans]
    for rendering in renderings:
        rendering.redacted()
    return renderings
