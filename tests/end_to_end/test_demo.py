"""The demo as a user runs it: in a process of its own, from whatever directory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prefect_vertex_launch.cli.demo.runs import RUNS
from tests.eventually import HANG_SECONDS

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home and a temporary directory in which nothing may be left, and a user's own settings."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    return os.environ | {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": "k" * 40,
        "WANDB_MODE": "offline",
    }


def start(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "prefect_vertex_launch.cli.main", "demo"],
        env=environment,
        cwd=environment["HOME"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left_behind(tmp_path: Path) -> tuple[list[Path], list[str]]:
    """Files in home and temporary directory, and processes that work below them."""
    files = [path for name in ("home", "tmp") for path in (tmp_path / name).iterdir()]
    processes: list[str] = []
    for process in psutil.process_iter():
        try:
            if str(tmp_path) in process.cwd() or process.environ().get("HOME", "").startswith(str(tmp_path)):
                processes.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return files, processes


def assert_nothing_left(tmp_path: Path) -> None:
    """What ends by itself with its parent, as wandb's service does, has a moment for it."""
    deadline = time.monotonic() + HANG_SECONDS
    while left_behind(tmp_path)[1] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind(tmp_path) == ([], [])


def test_all_eight_runs_come_out_as_they_should_and_nothing_is_left(
    environment: dict[str, str], tmp_path: Path
) -> None:
    demo = start(environment)
    output = demo.communicate(timeout=HANG_SECONDS)[0]

    assert demo.returncode == 0, output
    assert f"{len(RUNS)} of {len(RUNS)} runs came out as they should" in output
    table = output[output.index("Vertex AI   Prefect") :]
    for run in RUNS:
        row = next(line for line in table.splitlines() if f" {run.name} " in line)
        cells = re.split(r"\s{2,}", row.strip())
        assert cells[0] == "✓"
        assert cells[2] == f"{run.expected.run or 'no run'}, item {run.expected.item}"
        assert cells[3] == (run.expected.job or "no job")
        assert cells[4] == run.expected.launch
    assert "\x1b" not in output
    assert "Error logging" not in output
    assert_nothing_left(tmp_path)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell lets what it starts in the background ignore Ctrl-C, and that whatever it starts in turn."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_it_with_everything_it_started(environment: dict[str, str], tmp_path: Path) -> None:
    demo = start(environment)
    assert demo.stdout is not None
    for line in demo.stdout:
        if " running " in line:
            break
    else:
        pytest.fail("no job ever ran")

    os.killpg(demo.pid, signal.SIGINT)
    rest = demo.communicate(timeout=HANG_SECONDS)[0]

    assert demo.returncode == 130, rest
    assert "Traceback" not in rest
    assert_nothing_left(tmp_path)
