"""Rules that tie several arguments of a job together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.vertex_types import AcceleratorType, Scheduling
from prefect_vertex_launch.jobspec.config.machine_types import FLEX_START_ACCELERATORS, accelerator_of
from prefect_vertex_launch.jobspec.config.macros import has_macro

_FLEX_START_MAX_SECONDS: Final = 7 * 24 * 3600
_DEPRECATED: Final = (Scheduling.Strategy.ON_DEMAND, Scheduling.Strategy.LOW_COST)

Arguments = Mapping[str, Any]
PathOf = Callable[[str, str], str]


def check_job(spec: Arguments, run: Arguments, path_of: PathOf, findings: Findings) -> None:
    """Check arguments, each of which is right in itself, against each other.

    `path_of(section, name)` is where an argument stands.
    """
    _check_experiment(run, path_of, findings)
    _check_accounts(spec, run, path_of, findings)
    _check_scheduling(spec, run, path_of, findings)
    _check_network(spec, run, path_of, findings)
    if "sync" in run:
        findings.warn(path_of("run", "sync"), "has no effect: a launch never blocks on its job")


def may_start_again(run: Arguments) -> bool:
    """Tell whether Vertex AI may start a container of the job once more, as `run` asks it to.

    Source: https://cloud.google.com/vertex-ai/docs/training/use-spot-vms (up to six restarts) and the
    comments of `Scheduling.disable_retries` and `restart_job_on_worker_restart`.
    """
    is_spot = _strategy(run) is Scheduling.Strategy.SPOT
    return not run.get("disable_retries") and (is_spot or bool(run.get("restart_job_on_worker_restart")))


def _check_experiment(run: Arguments, path_of: PathOf, findings: Findings) -> None:
    if run.get("experiment") and run.get("tensorboard"):
        findings.refuse(
            path_of("run", "experiment"),
            "both experiment and tensorboard are set",
            "CustomJob takes one of them",
            "Remove one.",
        )
    if run.get("experiment_run") and not run.get("experiment"):
        findings.refuse(
            path_of("run", "experiment_run"),
            "set without experiment",
            "a run belongs to one",
            "Set experiment.",
        )
    for name in ("experiment", "tensorboard"):
        if run.get(name) and not run.get("service_account"):
            findings.refuse(
                path_of("run", name),
                "set without service_account",
                f"Vertex AI writes to the {name} with a service account of yours",
                "Set run.service_account.",
            )


def _check_accounts(spec: Arguments, run: Arguments, path_of: PathOf, findings: Findings) -> None:
    if spec.get("persistent_resource_id") and run.get("persistent_resource_id") not in {
        None,
        "",
        spec["persistent_resource_id"],
    }:
        findings.warn(
            path_of("run", "persistent_resource_id"), "differs from the one in spec; the one in run is used"
        )


def _strategy(run: Arguments) -> Scheduling.Strategy | None:
    value = run.get("scheduling_strategy")
    if isinstance(value, str):
        return Scheduling.Strategy.__members__.get(value)
    if isinstance(value, int) and value in {member.value for member in Scheduling.Strategy}:
        return Scheduling.Strategy(value)
    return None


def _check_scheduling(spec: Arguments, run: Arguments, path_of: PathOf, findings: Findings) -> None:
    strategy, where = _strategy(run), path_of("run", "scheduling_strategy")
    flex = strategy is Scheduling.Strategy.FLEX_START
    if strategy is not None and strategy in _DEPRECATED:
        findings.warn(where, f"{strategy.name} is deprecated; use STANDARD or SPOT")
    if run.get("disable_retries") and run.get("restart_job_on_worker_restart"):
        findings.warn(path_of("run", "disable_retries"), "overrides restart_job_on_worker_restart")
    if run.get("timeout") == 0:
        findings.warn(path_of("run", "timeout"), "0 is the same as not set: Vertex AI's default is 7 days")
    if (
        run.get("max_wait_duration") is not None
        and not flex
        and not has_macro(run.get("scheduling_strategy"))
    ):
        findings.warn(path_of("run", "max_wait_duration"), "has an effect only with FLEX_START")
    machines = [pool.get("machine_spec", {}) for pool in spec.get("worker_pool_specs", ()) if pool]
    accelerators = {accelerator_of(machine.get("accelerator_type")) for machine in machines} - {None}
    if strategy is Scheduling.Strategy.SPOT and AcceleratorType.TPU_V4_POD in accelerators:
        findings.warn(where, "TPU pods are not available as SPOT")
    if not flex:
        return
    timeout = run.get("timeout")
    if isinstance(timeout, int) and timeout > _FLEX_START_MAX_SECONDS:
        findings.warn(path_of("run", "timeout"), "FLEX_START jobs run for at most 7 days")
    if not accelerators or not accelerators <= FLEX_START_ACCELERATORS:
        findings.warn(where, "FLEX_START serves L4, A100, H100, H200 and B200 GPUs only")
    if any(machine != machines[0] for machine in machines[1:]):
        findings.warn(where, "FLEX_START wants the same machine_spec in all worker pools")


def _check_network(spec: Arguments, run: Arguments, path_of: PathOf, findings: Findings) -> None:
    network = run.get("network")
    if network and run.get("psc_interface_config"):
        findings.warn(path_of("run", "network"), "Vertex AI may refuse it together with psc_interface_config")
    if isinstance(network, str) and network and not has_macro(network):
        project = network.split("/")[1] if network.count("/") else ""
        if project and not project.isdecimal():
            findings.warn(path_of("run", "network"), "Vertex AI wants the project's number, not its name")
    if run.get("reserved_ip_ranges") and not network:
        findings.warn(path_of("run", "reserved_ip_ranges"), "has an effect only with network")
    mounts = any(pool.get("nfs_mounts") for pool in spec.get("worker_pool_specs", ()))
    if mounts and not network and not run.get("psc_interface_config"):
        findings.warn(path_of("run", "network"), "missing; NFS servers are reached through a peered network")
