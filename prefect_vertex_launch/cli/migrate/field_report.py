"""The report on an agent's configuration under way: its fields, and what is said about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_vertex_launch.cli.migrate.migration import UNLIMITED, Fate, Row
from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import is_object, kind_of, shown


@dataclass(slots=True)
class FieldReport:
    """A configuration, its agent's environment, and what was said so far, in this order in the report."""

    config: dict[str, Any]
    environ: Mapping[str, str]
    findings: Findings
    rows: list[Row] = field(default_factory=list[Row])

    def row(self, key: str, value: str, fate: Fate, becomes: str) -> None:
        """Say what becomes of a field."""
        self.rows.append(Row(key, value, fate, becomes))

    def refuse(self, key: str, value: object, what: str, why: str, fix: str) -> None:
        """Say that a field cannot be moved, which is a problem."""
        self.findings.refuse(key, what, why, fix)
        self.row(key, value_text(value, "not set"), Fate.CANNOT_MOVE, f"{what}. {fix}")

    def overridden(self, key: str, variable: str) -> tuple[str, Any]:
        """Return the name and the value of what counts: the variable if it is set, else the field."""
        if not self.environ.get(variable):
            return key, self.config.get(key)
        if self.config.get(key) is not None:
            text = value_text(self.config[key], "not set")
            self.row(key, text, Fate.NO_MEANING, f"{variable} overrides it")
        return variable, self.environ[variable]

    def text(self, key: str, value: Any, fix: str = "") -> str | None:
        """Return a text, None for null; anything else is a problem."""
        if value is None or isinstance(value, str):
            return value
        self.findings.expected(key, "a text", value, fix)
        self.row(key, kind_of(value), Fate.CANNOT_MOVE, "it is not a text")
        return None

    def integer(self, key: str, value: Any, default: int, *, minimum: int) -> int:
        """Return a number as W&B's agent takes it: texts of digits and 4.0 are numbers as well."""
        number = default if value is None else _as_integer(value)
        if number is None:
            what = f"expected a whole number, got {shown(value)}"
            self.refuse(key, value, what, "", "Write a number without quotes.")
            return default
        if number < minimum:
            no_limit = ", or -1 for no limit" if minimum == UNLIMITED else ""
            fix = f"Write 1 or more{no_limit}."
            self.refuse(key, value, f"{number} is negative", "W&B's agent refuses it, too", fix)
            return default
        return number

    def is_section(self, key: str, value: Any) -> bool:
        """Tell whether a value is a mapping of fields; anything else is a problem."""
        if is_object(value):
            return True
        self.findings.expected(key, "a mapping of fields", value)
        self.row(key, kind_of(value), Fate.CANNOT_MOVE, "it is not a mapping of fields")
        return False


def value_text(value: Any, default: str) -> str:
    """Return a value as a cell of the report; `default` for one that is not there."""
    return default if value is None else shown(value).strip("'")


def _as_integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and len(value) > 20:
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
