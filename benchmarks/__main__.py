"""`python -m benchmarks`: run the scenarios one after the other, print the table, keep the JSON."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.figures import Result
from benchmarks.servers import RECOMMENDED, database, prepare

RESULTS = Path(__file__).with_name("results")
SCENARIOS = ("imports", "start-up", "latency", "burst", "waiting")


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    settings = dict(pair.split("=", 1) for pair in options.setting)
    about = report.machine() | {"settings": RECOMMENDED | settings}
    results: list[Result] = []
    try:
        with tempfile.TemporaryDirectory(prefix="vertex-launch-bench-") as home:
            port = prepare(Path(home), settings, on_file=options.on_file)
            about["database"] = database()
            for scenario in options.only or SCENARIOS:
                sys.stderr.write(f"{datetime.now().astimezone():%H:%M:%S} {scenario} …\n")
                results.append(asyncio.run(_scenarios(port, options)[scenario]()))
    finally:
        # What has been measured before something went wrong is worth keeping.
        report.show(about, results)
        path = options.json or RESULTS / f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}.json"
        report.save(path, about, results)
        sys.stdout.write(f"{path}\n")


def _scenarios(
    port: int, options: argparse.Namespace
) -> dict[str, Callable[[], Coroutine[Any, Any, Result]]]:
    from benchmarks import burst, imports, latency, start_up, waiting

    return {
        "imports": lambda: imports.measure(options.repeat),
        "start-up": lambda: start_up.measure(port, options.repeat),
        "latency": lambda: latency.measure(port, options.latency_items),
        "burst": lambda: burst.measure(port, options.burst_items),
        "waiting": lambda: waiting.measure(port, options.waiting_items, options.window_seconds),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="run this one (repeatable)")
    parser.add_argument("--repeat", type=int, default=5, help="imports and starts to measure [5]")
    parser.add_argument("--latency-items", type=int, default=100, help="items on an idle queue [100]")
    parser.add_argument("--burst-items", type=int, default=100, help="items at once [100]")
    parser.add_argument("--waiting-items", type=int, default=1000, help="jobs under way at once [1000]")
    parser.add_argument("--window-seconds", type=float, default=120.0, help="how long to look on [120]")
    parser.add_argument(
        "--on-file", action="store_true", help="keep the Prefect server's SQLite in a file, not in memory"
    )
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable of all processes, such as a PREFECT_SERVER_… (repeatable)",
    )
    parser.add_argument("--json", type=Path, help="where the JSON goes [benchmarks/results/<time>.json]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
