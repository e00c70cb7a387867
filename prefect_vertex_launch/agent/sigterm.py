"""SIGTERM as a wish to end: what a platform sends before it takes the process away."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_termination(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in the event loop too when SIGTERM comes, while the body runs.

    Prefect's engine, whose handler stays, raises an exception wherever the process just is. In a callback
    of the event loop or in one of many tasks that one ends nothing, and the process would go on as if
    nobody had asked. The loop hears of a signal whoever handles it. Outside of the main thread no signal
    arrives, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, handler = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, act)
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        handler = signal.getsignal(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, handler)
