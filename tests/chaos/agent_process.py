"""Starts agents on request, each as a process of its own that is forked after the imports.

`python -m tests.chaos.agent_process` reads a line of JSON for each agent, with `arguments` (of the command
`vertex-launch`), `log`, `settings` (constants by `module.NAME`), `point` (where it is to kill itself) and
`faults` (of the sandbox: where, and the key), and answers with {"started": pid}; {"ended": pid, "code": n}
follows, negative for a signal. The imports are two seconds of CPU that every agent would need; a fork has
nothing but them, no connection, no thread and no event loop. When its input ends it kills what it started.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

import prefect_vertex_launch.cli.main
import prefect_vertex_launch.cli.status.status
import prefect_vertex_launch.flows.agent
from tests.chaos import kill_points, slot_trace

_started: set[int] = set()


def main() -> None:
    """Serve requests until the input ends."""
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    _say(ready=os.getpid())
    # Line by line and not through a buffer, which a fork would have too.
    with open(0, "rb", buffering=0, closefd=False) as requests:
        while line := requests.readline():
            _start(json.loads(line))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for pid in _started:
        os.killpg(pid, signal.SIGKILL)


def _start(request: dict[str, Any]) -> None:
    # A child that ends at once must not be reaped before it is known.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    pid = os.fork()
    if pid == 0:
        _be_an_agent(request)
    _started.add(pid)
    _say(started=pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _be_an_agent(request: dict[str, Any]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    os.setsid()
    with open(request["log"], "ab", buffering=0) as log, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    random.seed()
    for name, value in request["settings"].items():
        _set(name, value)
    slot_trace.trace()
    if request["point"]:
        when, effect, nth = request["point"]
        kill_points.arm(when, effect, nth, request["faults"])
    sys.argv = ["vertex-launch", *request["arguments"]]
    code = 1
    try:
        prefect_vertex_launch.cli.main.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    sys.exit(code)


def _set(name: str, value: Any) -> None:
    module_name, _, constant = name.rpartition(".")
    module = importlib.import_module(module_name)
    if not hasattr(module, constant):
        raise AttributeError(f"there is no {name}: the settings of the agents are not up to date")
    setattr(module, constant, value)


def _reap(_number: int, _frame: FrameType | None) -> None:
    while _started:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        _started.discard(pid)
        _say(ended=pid, code=os.waitstatus_to_exitcode(status))


def _say(**line: int) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()
