"""A calculation in a process of its own, which is killed when its time is over: a thread cannot be ended.

The process is started for one calculation. It is a plain Python that imports what it is sent and nothing of
the program that started it. Function, arguments and outcome go through pipes, so that no secret stands in
a command line, in a file or in anything that is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import pickle
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from prefect_vertex_launch.core.errors import LaunchError, Transient

T = TypeVar("T")
P = ParamSpec("P")

# Thirty times what the largest item takes, for the sake of a host that is busy with something else.
CHILD_SECONDS: Final = 30.0
# A child whose parent was killed ends by itself, so much later.
_MARGIN_SECONDS: Final = 10.0
_AT_ONCE: Final = 2
_PROGRAM: Final = "from prefect_vertex_launch.core.child_process import main; main()"
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class ChildEnded(LaunchError):
    """The child had no outcome: it was killed after its time, or it ended by itself."""


async def run_in_child(
    function: Callable[P, T], seconds: float = CHILD_SECONDS, /, *args: P.args, **named: P.kwargs
) -> T:
    """Return what `function` returns for these arguments, calculated in a child process.

    Args:
        function: It has to be found by its module and name; it, what it is given and what it returns can be
            pickled.
        seconds: How long the child may take, its start included.
        args: The function's arguments.
        named: Its arguments by name.

    Raises what the function raises if that is a LaunchError, ChildEnded when there is no outcome, Transient
    when no child can be started. Two children work at a time; the others wait, and that is not counted.
    """
    task = pickle.dumps((function, args, named, seconds + _MARGIN_SECONDS))
    loop = asyncio.get_running_loop()
    async with _turns.setdefault(loop, asyncio.Semaphore(_AT_ONCE)):
        # Whoever shuts the host down may end every process of a service: it is tried once more.
        answer = await _answer(task, seconds) or await _answer(task, seconds)
    if not answer:
        raise ChildEnded("the process that worked on it ended without an outcome, twice")
    outcome, error = pickle.loads(answer)  # noqa: S301 - our own child's
    if error is not None:
        raise error
    return outcome


async def _answer(task: bytes, seconds: float) -> bytes:
    """Return what the child writes; nothing if it ended before. Raises ChildEnded when its time is over."""
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", _PROGRAM, stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
            # Ctrl-C in a terminal is for the parent, which kills its child.
            start_new_session=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    except OSError as error:
        raise Transient(f"no process can be started: {error}") from error
    try:
        async with asyncio.timeout(seconds):
            answer, _ = await child.communicate(task)
    except TimeoutError:
        raise ChildEnded(f"it was not done after {seconds:g} s") from None
    finally:
        # Also when the launch is cancelled.
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await asyncio.shield(child.wait())
    return answer if child.returncode == 0 else b""


def main() -> None:
    """Work as the child: read a task, write its outcome."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    function, args, named, seconds = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent's
    # It ends the process whatever it is doing, even inside of one call that never returns.
    faulthandler.dump_traceback_later(seconds, exit=True)
    outcome: Any = None
    try:
        outcome = function(*args, **named), None
    except LaunchError as error:
        outcome = None, error
    except Exception as error:  # noqa: BLE001 - its text may hold a secret; its kind is told
        outcome = None, RuntimeError(f"{function.__name__} failed: {type(error).__name__}")
    sys.stdout.buffer.write(pickle.dumps(outcome))
