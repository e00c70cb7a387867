"""The status of queues for a person at a terminal, for a pipe, or as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from prefect_vertex_launch.cli.columns import aligned
from prefect_vertex_launch.cli.status.item_status import ItemStatus
from prefect_vertex_launch.cli.status.queue_reader import QueueStatus
from prefect_vertex_launch.cli.status.status import read_status
from prefect_vertex_launch.coordination.prefect_api import open_prefect
from prefect_vertex_launch.core.foreign_text import one_line, several_lines

# State, symbol, colour: never the colour alone.
_LOOKS = {
    "waiting": ("…", "dim"),
    "leased": ("…", "dim"),
    "claimed": ("⟳", "cyan"),
    "submitted": ("⟳", "cyan"),
    "queued": ("…", "yellow"),
    "pending": ("⟳", "cyan"),
    "running": ("▶", "blue"),
    "paused": ("⏸", "yellow"),
    "cancelling": ("⟳", "yellow"),
    "succeeded": ("✓", "green"),
    "partially_succeeded": ("✓", "yellow"),
    "cancelled": ("■", "yellow"),
    "failed": ("✗", "red"),
    "expired": ("✗", "red"),
    "lost": ("✗", "red"),
    "refused": ("✗", "red"),
    "crashed": ("✗", "red"),
}
_PIPE_COLUMNS = ("ITEM", "RUN", "STATE", "WHY", "AGE", "JOB", "W&B", "VERTEX", "PREFECT")


async def show_status(block_name: str | None, *, ended_limit: int, as_json: bool) -> bool:
    """Print the queues; return whether every system could be read.

    Raises LaunchError when Prefect does not answer or there is no such block.
    """
    async with open_prefect() as client:
        queues = await read_status(client, block_name, ended_limit=ended_limit)
    if as_json:
        sys.stdout.write(json.dumps([asdict(queue) for queue in queues], indent=2) + "\n")
    elif sys.stdout.isatty():
        print_tables(queues)
    else:
        sys.stdout.write(as_text(queues))
    if not queues:
        sys.stderr.write("hint: there is no VertexLaunchQueue block yet; docs/deploying.md makes one\n")
    return not any(queue.problems for queue in queues)


def state_text(state: str) -> str:
    """Return a state with its symbol, in rich's markup."""
    symbol, colour = _LOOKS.get(state, ("?", "default"))
    return f"[{colour}]{symbol} {state}[/]"


def age_text(seconds: float | None) -> str:
    """Return a duration as a person says it: 12 s, 5 min, 3 h, 2 d; `-` for None."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def headline(queue: QueueStatus) -> str:
    """Return one line on a queue: where its jobs go, how full it is, who serves it."""
    taken = f"{queue.slots_taken or 0} of {queue.max_jobs} slots taken"
    limit = "no limit" if queue.max_jobs < 0 else taken
    agents = {0: "no agent", 1: "1 agent"}.get(queue.agents, f"{queue.agents} agents")
    return f"{queue.queue} → {queue.project}/{queue.location} (block {queue.block}): {limit}, {agents}"


def as_text(queues: list[QueueStatus]) -> str:
    """Return aligned columns, one line for each item, for pipes: nothing is folded or coloured."""
    lines: list[str] = []
    for queue in queues:
        lines.append(f"# {one_line(headline(queue))}")
        lines += aligned([_PIPE_COLUMNS, *(_plain_row(item) for item in queue.items)])
        lines += [f"error: {one_line(' '.join(problem.split()))}" for problem in queue.problems]
        lines.append("")
    return "\n".join(lines)


def _plain_row(item: ItemStatus) -> tuple[str, ...]:
    cells = (
        item.item,
        item.run,
        item.state,
        " ".join(item.why.split()),
        age_text(item.age_seconds),
        item.job,
        item.wandb_url,
        item.vertex_url,
        item.prefect_url,
    )
    return tuple(cell or "-" for cell in cells)


def print_tables(queues: list[QueueStatus]) -> None:
    """Print a table for each queue, with colours and links where the terminal has them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for queue in queues:
        table = Table(title=escape(one_line(headline(queue))), title_justify="left")
        for column in ("item", "run", "state", "why", "age", "job", "links"):
            table.add_column(column, overflow="fold", no_wrap=column in {"state", "age"})
        for item in queue.items:
            table.add_row(
                escape(one_line(item.item)),
                escape(one_line(item.run)) or "-",
                state_text(item.state),
                escape(several_lines(item.why)),
                age_text(item.age_seconds),
                escape(one_line(item.job or "-")),
                _links(item),
            )
        console.print(table)
        for problem in queue.problems:
            console.print(f"error: {several_lines(problem)}", markup=False)


def _links(item: ItemStatus) -> Any:
    """Return links that a terminal opens on a click; their addresses are in the piped output."""
    from rich.text import Text

    targets = (("W&B", item.wandb_url), ("Vertex", item.vertex_url), ("Prefect", item.prefect_url))
    links = [Text(name, style=f"link {url}") for name, url in targets if url]
    return Text(" ").join(links) if links else "-"
