"""What `vertex-launch migrate` and `vertex-launch adopt` print: tables, aligned the same in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect_vertex_launch.cli.adopt import Adoption
from prefect_vertex_launch.cli.columns import aligned
from prefect_vertex_launch.cli.migrate.migration import Migration
from prefect_vertex_launch.cli.migrate.plan import Plan
from prefect_vertex_launch.cli.migrate.queue_review import QueueReview
from prefect_vertex_launch.core.errors import Problem
from prefect_vertex_launch.core.foreign_text import several_lines
from prefect_vertex_launch.core.secrets import is_secret_name


def print_fields(path: Path, migration: Migration) -> None:
    """Print a row for each field: its key, its value, what becomes of it."""
    rows = [("KEY", "VALUE", "BECOMES"), *((row.key, row.value, str(row)) for row in migration.rows)]
    _print(f"# {path}", *aligned(rows, " | "), *(f"warning: {warning}" for warning in migration.warnings), "")


def print_queues(entity: str, reviews: Mapping[str, QueueReview], *, allow_macros: bool) -> None:
    """Print what works otherwise in each queue, and the variables that only an allow-list fills in."""
    for queue, review in reviews.items():
        refused = f"{len(review.problems)} problems, see below" if review.problems else "can be served"
        _print(f"# queue {entity}/{queue}: {refused}")
        _print(*(f"changed: {change}" for change in review.changes))
        _print(*(_macro_line(macro.path, macro.name, allow_macros) for macro in review.macros), "")


def _macro_line(path: str, name: str, allow_macros: bool) -> str:
    if is_secret_name(name):
        fate = "looks like a secret, which whoever may push a run could read: it is never allowed from here"
    elif allow_macros:
        fate = "goes into allowed_macros; set it where the worker runs"
    else:
        fate = "W&B's agent fills it in from its whole environment; here only with --allow-macros"
    return f"macro: {path}: ${{{name}}}: {fate}"


def print_problems(problems: Sequence[Problem]) -> None:
    """Print everything that prevents the move."""
    _print(*(f"problem: {problem}" for problem in problems))


def print_plan(plan: Plan) -> None:
    """Print what `--apply` would write."""
    _print("# nothing was written; with --apply there will be", *plan.lines(), "")
    print_commands(plan.commands(), None)


def print_written(lines: Sequence[str]) -> None:
    """Print what was written and what was there already."""
    _print("# written", *lines, "")


def print_commands(commands: Sequence[str], output: Path | None) -> None:
    """Print the commands that serve the queues, or where they are."""
    _print("# then", *([f"sh {output}"] if output else commands))


def print_adoptions(block_name: str, adoptions: Sequence[Adoption]) -> None:
    """Print a row for each live job of W&B's agent."""
    rows = [("JOB", "RUN", "ITEM", "DONE"), *((a.job, a.run, a.item, a.done) for a in adoptions)]
    if adoptions:
        _print(*aligned(rows, " | "))
    else:
        _print(f"W&B's agent left no live job where the block {block_name} has its jobs.")


def _print(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{several_lines(line)}\n")
