"""The worker pools of a job that run the launch, and what the launch puts into them.

The other pools (a reduction server, say) are left as the queue wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at
from prefect_vertex_launch.jobspec.config.config_check import QueueConfig
from prefect_vertex_launch.jobspec.config.job_rules import may_start_again
from prefect_vertex_launch.jobspec.config.launch_options import CommandPools, LaunchOptions, RunIdReplicas
from prefect_vertex_launch.jobspec.config.worker_pools import TASKS, check_env_count
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.environment import RUN_GROUP, companion_environment, launch_environment
from prefect_vertex_launch.jobspec.run_spec import RunSpec


def find_launch_pools(config: QueueConfig, image_uri: str, findings: Findings) -> tuple[int, ...]:
    """Return the indices of the pools that run the launch, in order.

    Args:
        config: The configuration as it was written, its macros not filled in.
        image_uri: The launch's image.
        findings: Takes a warning if no pool runs that image.
    """
    chosen = config.launch.command_pools
    if not isinstance(chosen, CommandPools):
        return chosen
    pools: list[dict[str, Any]] = config.spec.get("worker_pool_specs", [])
    found = tuple(
        index for index, pool in enumerate(pools) if chosen is CommandPools.ALL or _has_image(pool, image_uri)
    )
    if not found:
        findings.warn(
            config.path_of("spec", "worker_pool_specs"),
            "no worker pool runs the launch's image; write image_uri: ${image_uri} where it should run, "
            "or name the pools in launch.command_pools",
        )
    return found


def _has_image(pool: Mapping[str, Any], image_uri: str) -> bool:
    container: Mapping[str, Any] = pool.get(TASKS[0], {})
    package: Mapping[str, Any] = pool.get(TASKS[1], {})
    image = container.get("image_uri") or package.get("executor_image_uri") or ""
    return bool(image) and ("${image_uri}" in image or image == image_uri)


class LaunchPools:
    """The pools that run one launch.

    `indices` are their places among the job's pools; the first of them is the W&B run. `options` are
    those of the queue's configuration.
    """

    def __init__(
        self,
        indices: tuple[int, ...],
        options: LaunchOptions,
        run_spec: RunSpec,
        context: LaunchContext,
        findings: Findings,
    ) -> None:
        self._indices = indices
        self._options = options
        self._run_spec = run_spec
        self._context = context
        self._findings = findings

    def fill(self, config: QueueConfig) -> Mapping[int, Mapping[str, str]]:
        """Put the launch's variables, arguments and entry point into its pools of `config`.

        Returns the variables by the pool's index.
        """
        pools: list[dict[str, Any]] = config.spec.get("worker_pool_specs", [])
        path = config.path_of("spec", "worker_pool_specs")
        environments = self._environments(config, pools)
        for index, environment in environments.items():
            if index < len(pools):
                self._fill_pool(pools[index], at(path, index), environment)
        return environments

    def _environments(
        self, config: QueueConfig, pools: list[dict[str, Any]]
    ) -> Mapping[int, Mapping[str, str]]:
        """Return the variables for each pool that runs the launch."""
        own = launch_environment(self._run_spec, self._context, may_start_again=may_start_again(config.run))
        if self._options.run_id_replicas is RunIdReplicas.ALL or not self._indices:
            return dict.fromkeys(self._indices, own)
        first, *companions = self._indices
        replicas = pools[first].get("replica_count") if first < len(pools) else None
        if isinstance(replicas, int) and replicas > 1:
            path = at(config.path_of("spec", "worker_pool_specs"), first)
            self._findings.warn(
                at(path, "replica_count"),
                f"{replicas} replicas share one environment and so are all of them the same W&B run; "
                "run the launch in the first pool too, or let one of them open the run",
            )
        return {first: own} | dict.fromkeys(companions, companion_environment(own))

    def _fill_pool(self, pool: dict[str, Any], path: str, environment: Mapping[str, str]) -> None:
        name = next((task for task in TASKS if task in pool), None)
        if name is None:
            return
        task, where = pool[name], at(path, name)
        self._set_variables(task, at(where, "env"), environment)
        if self._run_spec.overrides.args:
            task["args"] = list(self._run_spec.overrides.args)
        self._set_command(task, where, is_container=name == TASKS[0])

    def _set_variables(self, task: dict[str, Any], path: str, environment: Mapping[str, str]) -> None:
        """Put the launch's variables after the queue's own; one of the same name gives way."""
        written: list[dict[str, Any]] = task.get("env", [])
        own_names = {variable.get("name") for variable in written}
        if "WANDB_RUN_ID" not in environment and RUN_GROUP in own_names:
            environment = {key: value for key, value in environment.items() if key != RUN_GROUP}
        kept: list[dict[str, Any]] = []
        for index, variable in enumerate(written):
            if variable.get("name") in environment:
                self._findings.warn(
                    at(path, index), f"{variable['name']} is set by the launch; its value is used"
                )
            else:
                kept.append(variable)
        task["env"] = [*kept, *({"name": name, "value": value} for name, value in environment.items())]
        check_env_count(len(task["env"]), path, self._findings)

    def _set_command(self, task: dict[str, Any], where: str, *, is_container: bool) -> None:
        override, of_job = self._run_spec.overrides.entry_point, self._context.job_entry_point
        if not is_container:
            if override or of_job:
                self._findings.warn(
                    where, "a Python package has no command; the launch's entry point is not used"
                )
        elif override:
            task["command"] = list(override)
        elif of_job and not task.get("command"):
            task["command"] = list(of_job)
        elif of_job:
            self._findings.warn(at(where, "command"), "is used instead of the job's entry point")
