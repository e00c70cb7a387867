"""What a stranger has written is shown as it is: nothing obeys it, and nothing takes it for ours."""

from __future__ import annotations

import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from prefect_vertex_launch.cli.columns import aligned
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.foreign_text import as_markdown, lines_as_markdown, one_line, several_lines

HOSTILE = [
    "\x1b[2J\x1b]0;title\x07\x1b]52;c;Y2xpcA==\x07",
    "run\nITEM  RUN  succeeded",
    "\r\x08\x08\x7f\x9b31m",
    "abc\u202egnp.exe\u2066",
    "line\u2028separator\u2029\x85",
    "half \ud800 pair",
    "soft\u00adhyphen\u200bzero\ufeff",
]
MARKDOWN = [
    "![x](https://evil.example/pixel.png)",
    "[click](javascript:alert(1))",
    "<img src=https://evil.example/x>",
    "a | b | forged\n|---|---|\n| Category | succeeded |",
    "# heading",
    "`code` *bold* __strong__ ~~gone~~",
    "1. one\n2. two",
    "- item\n+ item\n=====\n-----",
    "&lt;script&gt; \\",
    "https://evil.example/login and www.evil.example",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_shown_and_not_obeyed(text: str):
    shown = one_line(text)
    assert shown.isprintable()
    assert shown != text


@given(st.text())
def test_whatever_a_text_holds_it_stays_in_its_line(text: str):
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(each) for each in shown.replace("\u200d", "")} & {
        "Cc",
        "Cf",
        "Cs",
        "Zl",
        "Zp",
    }
    for line in several_lines(text, indent="| ").split("\n")[1:]:
        assert line.startswith("| ")


@pytest.mark.parametrize("text", ["日本語 モデル", "training 👩‍💻 run", "naïve-résumé", "Ünïcödé", "plain"])
def test_what_people_write_stays_as_it_is(text: str):
    assert one_line(text) == text


@pytest.mark.parametrize("text", MARKDOWN + HOSTILE)
def test_markdown_shows_a_text_as_it_is(text: str):
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(
        f"| Item | {as_markdown(text)} |\n|---|---|\n| Run | {as_markdown(text)} |"
    )
    for tag in ("<img", "<a", "<h1", "<code", "<em", "<strong", "<script", "<ol", "<ul", "<s>"):
        assert tag not in html
    assert html.count("<tr>") == 2
    assert html.count("<td>") == 2


@pytest.mark.parametrize("text", MARKDOWN)
def test_lines_of_markdown_stay_lines_and_nothing_else(text: str):
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(lines_as_markdown(text))
    for tag in ("<img", "<a", "<h1", "<h2", "<table", "<code", "<hr", "<ol", "<ul", "<li"):
        assert tag not in html


def test_columns_hold_with_wide_characters_and_hostile_names():
    rows = [
        ("ITEM", "RUN", "STATE"),
        ("1", "日本語 モデル", "failed"),
        ("2", "👍 go", "running"),
        ("3", HOSTILE[1], "x"),
    ]
    lines = aligned(rows)
    assert len(lines) == 4
    assert len({cell_len(line[: line.rindex("  ")]) for line in lines}) == 1


def test_a_name_cannot_forge_a_record_of_a_log(caplog: pytest.LogCaptureFixture):
    clean_log("prefect.vertex-launch.test").warning("The run %s", "a\n05:00:00 | ERROR | all is lost\x1b[2J")
    [message] = caplog.messages
    assert message == "The run a\n    | 05:00:00 | ERROR | all is lost\\x1b[2J"
    assert caplog.records[0].levelno == logging.WARNING
