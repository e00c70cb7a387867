"""A queue's configuration with the macros of one launch filled in, and checked once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_unicode, shown
from prefect_vertex_launch.jobspec.config.config_check import QueueConfig, check_config
from prefect_vertex_launch.jobspec.config.macros import LAUNCH_MACROS, FilledSize, fill_macros
from prefect_vertex_launch.jobspec.config.worker_pools import TASKS
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.environment import join_literally
from prefect_vertex_launch.jobspec.run_spec import RunSpec

# Where ${NAME} may be meant for a shell in the container; so it may in the values of `env`.
_SHELL_FIELDS: Final = ("command", "args")


def fill_config(
    config: QueueConfig, run_spec: RunSpec, context: LaunchContext, findings: Findings
) -> QueueConfig:
    """Return the configuration with its macros filled in.

    Args:
        config: The configuration as it was written.
        run_spec: The launch's run spec.
        context: The launch.
        findings: Takes the macros that are not known, and what the filled in values break.
    """
    return _Filling(run_spec, context, findings).filled(config)


class _Filling:
    """The macros of one launch, and what is said about those that it does not have."""

    def __init__(self, run_spec: RunSpec, context: LaunchContext, findings: Findings) -> None:
        self._allowed = context.macros
        self._size = FilledSize()
        self._findings = findings
        self._values = self._texts(
            {
                **{name: value for name, value in context.macros.items() if value is not None},
                "image_uri": context.image_uri,
                "project_name": run_spec.project,
                "entity_name": run_spec.entity,
                "run_id": context.run_id,
                "run_name": run_spec.run_name or context.run_id,
                "author": run_spec.author or "",
            }
        )
        self._known = ", ".join((*LAUNCH_MACROS, *sorted(self._values.keys() - set(LAUNCH_MACROS))))

    def filled(self, config: QueueConfig) -> QueueConfig:
        spec, run = self._section(config, "spec"), self._section(config, "run")
        return check_config(spec, run, config.paths, self._findings, macros_pending=False)

    def _section(self, config: QueueConfig, section: str) -> dict[str, Any]:
        arguments = config.spec if section == "spec" else config.run
        return {
            name: self._pools(value, config.path_of(section, name))
            if name == "worker_pool_specs"
            else fill_macros(
                value, self._values, config.path_of(section, name), self._refuse, size=self._size
            )
            for name, value in arguments.items()
        }

    def _pools(self, pools: list[dict[str, Any]], path: str) -> Any:
        """Fill the pools: unknown macros are left to the shell where a task may have one."""
        filled: list[dict[str, Any]] = []
        for index, pool in enumerate(pools):
            where = at(path, index)
            plain = {name: value for name, value in pool.items() if name not in TASKS}
            result = fill_macros(plain, self._values, where, self._refuse, size=self._size)
            for task in TASKS:
                if task in pool:
                    result[task] = {
                        name: self._task_field(name, value, at(at(where, task), name))
                        for name, value in pool[task].items()
                    }
            filled.append(result)
        return filled

    def _task_field(self, name: str, value: Any, path: str) -> Any:
        if name != "env":
            on_unknown = self._leave if name in _SHELL_FIELDS else self._refuse
            return fill_macros(value, self._values, path, on_unknown, size=self._size)
        return [
            # Vertex AI expands $(NAME) in the values of variables: what a macro brings in is no such name.
            {
                key: fill_macros(
                    text, self._values, at(at(path, index), key), self._leave, join_literally, size=self._size
                )
                if key == "value"
                else fill_macros(text, self._values, at(at(path, index), key), self._refuse, size=self._size)
                for key, text in variable.items()
            }
            for index, variable in enumerate(value)
        ]

    def _texts(self, values: dict[str, str]) -> Mapping[str, str]:
        """Return the values by name, an empty text for one that no field of a job can hold."""
        for name, value in values.items():
            if not is_unicode(value) or "\0" in value:
                self._findings.refuse(
                    f"${{{name}}}",
                    "its value is not text",
                    "no field of a job can hold it",
                    "Correct it where it comes from: the launch, or the worker's environment.",
                )
                values[name] = ""
        return values

    def _refuse(self, path: str, name: str) -> None:
        if name in self._allowed:
            self._findings.refuse(
                path,
                f"${{{name}}} is allowed, but not set in the worker's environment",
                "a macro of the block's allow-list is a variable of the worker",
                f"Set {name} where the worker runs.",
            )
            return
        self._findings.refuse(
            path,
            f"${{{shown(name)[1:-1]}}} is not a known macro",
            "only the launch's own names and those that the queue's block allows are filled in",
            f"Use one of {self._known}, or allow it in the block.",
        )

    def _leave(self, path: str, name: str) -> None:
        if self._findings.has_enough_warnings:
            return
        reason = (
            "allowed, but not set in the worker's environment"
            if name in self._allowed
            else f"not a macro (known are {self._known})"
        )
        self._findings.warn(path, f"${{{shown(name)[1:-1]}}} is left as it is: {reason}")
