"""What takes too long runs in a process of its own, which is killed; nothing else waits for it."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefect_vertex_launch.core import child_process
from prefect_vertex_launch.core.child_process import ChildEnded, run_in_child
from prefect_vertex_launch.core.errors import InvalidQueueConfig, InvalidRunSpec, Transient
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults, parse_queue_config
from prefect_vertex_launch.jobspec.render import render as render_job
from prefect_vertex_launch.launch import render
from prefect_vertex_launch.launch.item import LARGE_CHARACTERS, QueueItem
from tests.unit.full_items import SHAPES, item
from tests.unit.rendered_launch import KEY, launch_context, pool

# One call into C that never returns, and lets no other thread of its process go on.
ENDLESS = (r"(a+)+$", "a" * 60 + "b")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the process ids of the children that are started."""
    started: list[int] = []
    start = asyncio.create_subprocess_exec

    async def watched(*args: Any, **named: Any) -> Any:
        child = await start(*args, **named)
        started.append(child.pid)
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
    return started


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def queue() -> Any:
    defaults = QueueDefaults(spec={}, run={})
    return SimpleNamespace(block=SimpleNamespace(defaults=lambda: defaults))


async def test_a_calculation_that_never_ends_is_killed_while_another_one_goes_on(children: list[int]) -> None:
    endless = asyncio.create_task(run_in_child(re.match, 3.0, *ENDLESS))
    assert await render.configuration(queue(), QueueItem(item_id="2", payload=item())) is not None
    assert await run_in_child(len, 60.0, "abc") == 3
    assert not endless.done()
    with pytest.raises(ChildEnded, match="it was not done after 3 s"):
        await endless
    assert len(children) == 2
    assert not any(map(is_alive, children))


async def test_an_item_that_takes_too_long_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(render, "CHILD_SECONDS", 0.01)
    large = QueueItem(item_id="7", payload=SHAPES["queue's args"]())
    with pytest.raises(
        InvalidRunSpec, match=r"item 7: cannot be made into a job: it was not done .* smaller"
    ):
        await render._parsed(queue(), large, large.require_spec())


async def test_only_a_large_item_is_worth_a_child_and_becomes_the_same(children: list[int]) -> None:
    small = QueueItem(item_id="1", payload=item(pool(args=["a" * (LARGE_CHARACTERS - 1_000)])))
    assert await render.configuration(queue(), small) is not None
    assert children == []
    large = QueueItem(item_id="1", payload=item(pool(args=["a" * LARGE_CHARACTERS])))
    config = await render.configuration(queue(), large)
    assert len(children) == 1
    assert large.spec is not None
    expected = parse_queue_config(large.spec.resource_args, defaults=QueueDefaults({}, {}))
    assert config == expected
    given = (large.spec, expected, launch_context())
    assert await run_in_child(render_job, 60.0, *given) == render_job(*given)


async def test_what_is_refused_in_the_child_is_refused_here() -> None:
    with pytest.raises(InvalidQueueConfig, match=r"spec\.worker_pool_specs: missing"):
        await run_in_child(parse_queue_config, 60.0, {"spec": {"staging_bucket": "gs://b-1"}})


async def test_no_secret_is_told_by_what_nobody_foresaw() -> None:
    with pytest.raises(RuntimeError, match=r"^int failed: ValueError$") as caught:
        await run_in_child(int, 60.0, KEY + "x")
    assert KEY not in repr(caught.value)


async def test_a_child_that_ends_by_itself_is_tried_once_more(children: list[int]) -> None:
    with pytest.raises(ChildEnded, match="ended without an outcome, twice"):
        await run_in_child(os._exit, 60.0, 0)
    assert len(children) == 2


async def test_a_host_without_room_for_a_child_lets_the_launch_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    with pytest.raises(Transient, match="no process can be started"):
        await run_in_child(len, 60.0, "abc")


async def test_a_launch_that_is_cancelled_leaves_no_child(children: list[int]) -> None:
    endless = asyncio.create_task(run_in_child(re.match, 60.0, *ENDLESS))
    while not children:
        await asyncio.sleep(0)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert not is_alive(children[0])


def test_a_child_whose_parent_was_killed_ends_by_itself() -> None:
    """It ends in the middle of a call, and prints nothing."""
    child = subprocess.Popen(
        [sys.executable, "-c", child_process._PROGRAM],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(pickle.dumps((re.match, ENDLESS, {}, 1.0)))
    child.stdin.flush()
    assert child.wait(60) == 1
    assert child.stdout is not None
    assert child.stdout.read() == b""
