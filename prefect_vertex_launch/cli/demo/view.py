"""What the demo shows: a live table on a terminal, plain lines elsewhere, and a last table for both."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from prefect_vertex_launch.cli.demo.runs import RUNS, DemoRun, Outcome
from prefect_vertex_launch.cli.status.item_status import ItemStatus
from prefect_vertex_launch.cli.status.queue_reader import QueueStatus
from prefect_vertex_launch.cli.status.table import state_text

PIPE_COLUMNS = 120


class DemoView:
    """Writes to standard output; NO_COLOR and pipes are honoured.

    `started` is the monotonic time from which it counts.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=PIPE_COLUMNS)
        self._live: Live | None = None
        self._said: dict[str, str] = {}

    def say(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        self._console.print(f"{self._seconds():5.1f} s  {escape(line)}", soft_wrap=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """Keep a live table up while the body runs, if there is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(self._progress_table({}), console=self._console, auto_refresh=False) as self._live:
            yield
        self._live = None

    def show_progress(self, status: QueueStatus) -> None:
        """Show where each run is: the live table, or a line for each change."""
        items = {item.run: item for item in status.items if item.run}
        if self._live is not None:
            self._live.update(self._progress_table(items), refresh=True)
            return
        for run in RUNS:
            item = items.get(run.name)
            if item is None or self._said.get(run.name) == item.state:
                continue
            self._said[run.name] = item.state
            self.say(f"{run.name:<12} {item.state:<10} {item.why}")

    def show_outcomes(self, outcomes: Mapping[str, Outcome]) -> bool:
        """Print what became of each run; return whether all came out as they should."""
        table = _table("", "run", "W&B", "Vertex AI", "Prefect", "what W&B and the launch say of it")
        deviations: list[str] = []
        for run in RUNS:
            outcome = outcomes[run.name]
            found = run.deviations(outcome)
            deviations += [f"{run.name}: {deviation}" for deviation in found]
            table.add_row(
                "[red]✗[/]" if found else "[green]✓[/]",
                run.name,
                f"{outcome.run or 'no run'}, item {outcome.item or '?'}",
                outcome.job or "no job",
                outcome.launch or "no flow run",
                escape(_evidence(run, outcome)),
            )
        self._console.print()
        self._console.print(table)
        for deviation in deviations:
            self._console.print(f"✗ {deviation}", markup=False, soft_wrap=True)
        good = sum(not run.deviations(outcomes[run.name]) for run in RUNS)
        self._console.print(
            f"{good} of {len(RUNS)} runs came out as they should in W&B, Vertex AI and Prefect, "
            f"{self._seconds():.0f} s after the start."
        )
        return not deviations

    def _progress_table(self, items: Mapping[str, ItemStatus]) -> Table:
        table = _table("run", "shows", "state", "why", "job")
        for run in RUNS:
            item = items.get(run.name)
            if item is None:
                table.add_row(run.name, run.shows, state_text("waiting"), "in the queue", "-")
            else:
                table.add_row(run.name, run.shows, state_text(item.state), escape(item.why), item.job or "-")
        return table

    def _seconds(self) -> float:
        return time.monotonic() - self._started


def _evidence(run: DemoRun, outcome: Outcome) -> str:
    """Return the entries of the run's summary that prove the point, or why there are none."""
    shown: list[Any] = [f"{key}={outcome.summary.get(key)}" for key in run.expected.summary]
    return f"{run.shows}: {', '.join(shown)}" if shown else f"{run.shows}: {outcome.message}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
