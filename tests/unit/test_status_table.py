"""Queues as text: for a terminal, for a pipe, and without colour."""

from __future__ import annotations

import io
import re

import pytest

from prefect_vertex_launch.cli.status.item_status import ItemStatus
from prefect_vertex_launch.cli.status.queue_reader import QueueStatus
from prefect_vertex_launch.cli.status.table import age_text, as_text, print_tables, state_text
from prefect_vertex_launch.core.states import LaunchState

ITEMS = (
    ItemStatus(queue="team/q", item="i2", run="", state="waiting", why="2 of 2 slots are taken"),
    ItemStatus(
        queue="team/q",
        item="i1",
        run="train [v2]",
        state="running",
        why="the job runs",
        age_seconds=300.0,
        job="123",
        wandb_url="http://wandb/run",
        vertex_url="http://vertex/job",
        prefect_url="http://prefect/run",
    ),
)
QUEUE = QueueStatus("block", "team/q", "project", "us-central1", 2, 2, 1, ITEMS, ("W&B: it\nis away",))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "160", **environment}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    print_tables([QUEUE])
    return terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-3, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_an_age_has_one_unit(seconds, text):
    assert age_text(seconds) == text


def test_a_pipe_gets_one_line_for_each_item_with_its_links_and_no_escapes():
    text = as_text([QUEUE])
    head, columns, waiting, running, problem, *_ = text.splitlines()
    assert head == "# team/q → project/us-central1 (block block): 2 of 2 slots taken, 1 agent"
    assert columns.split() == ["ITEM", "RUN", "STATE", "WHY", "AGE", "JOB", "W&B", "VERTEX", "PREFECT"]
    assert waiting.split()[:3] == ["i2", "-", "waiting"]
    assert running.endswith("http://wandb/run  http://vertex/job  http://prefect/run")
    assert "5 min" in running
    assert problem == "error: W&B: it is away"
    assert "\x1b" not in text


def test_a_terminal_gets_a_coloured_table_in_which_markup_of_a_name_is_text(monkeypatch):
    text = table_on_a_terminal(monkeypatch)
    assert "\x1b[34m▶ running" in text
    assert "train [v2]" in text
    assert "\x1b]8;" in text  # links


def test_no_color_is_honoured(monkeypatch):
    text = table_on_a_terminal(monkeypatch, NO_COLOR="1")
    assert not re.search(r"\x1b\[[39]\d", text)
    assert "▶ running" in text


@pytest.mark.parametrize("state", ["waiting", "leased", *(state.value for state in LaunchState)])
def test_every_state_has_a_symbol_of_its_own_beside_its_colour(state):
    assert "?" not in state_text(state)
