"""`make chaos`: agents, the sandbox and the Prefect server are killed, round after round, each audited.

A round has a seed of its own, a queue, a sandbox and a Prefect server. What was drawn is the same for the
same seed; when exactly it hits is up to the machine. A round that fails says its seed and keeps its logs.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import auditor
from tests.chaos.arena import QUICK, Arena, arena
from tests.chaos.figures import figures, table
from tests.chaos.interventions import Interventions, intervening
from tests.chaos.servers import PrefectProcess
from tests.chaos.storm import AGENTS, PREFECT_SERVER, SANDBOX, Storm
from tests.end_to_end.prefect_server import PrefectServer, prefect_client_of, send_what_is_left

JOB_SECONDS = 2.0
REAL_RUNS = 2
END_SECONDS = 180.0
# Prefect on a SQLite file stands still for a minute now and then, and answers late at other times: who is
# silent for two seconds is not gone yet. A slot that is counted for nobody is found after a quiet minute.
END_ON_FILE_SECONDS = 480.0
PATIENT: Mapping[str, Any] = {
    **QUICK,
    "prefect_vertex_launch.coordination.heartbeat.HEARTBEAT_SECONDS": 1.0,
    "prefect_vertex_launch.coordination.heartbeat.DOUBT_SECONDS": 5.0,
    "prefect_vertex_launch.coordination.heartbeat.GONE_SECONDS": 10.0,
    "prefect_vertex_launch.coordination.heartbeat.LOOK_AWAY_SECONDS": 12.0,
}
EVERY_BLOW = ("sandbox", "prefect", "freeze", "terminate")
SERVERS = {"sandbox": SANDBOX, "prefect": PREFECT_SERVER}
EACH = 2
INTERVENTIONS = ("stopped", "cancelled", "preempted", "over quota")
# Of each launch of that kind the first creates, whoever sends them.
OVER_QUOTA: Mapping[str, Any] = {
    "server": "vertex",
    "what": "answer",
    "operation": "CreateCustomJob",
    "about": "over-quota",
    "status": 429,
    "message": "The following quota metrics exceed quota limits: custom_model_training_cpus",
    "times": 3 * EACH,
}
REPORTED = ("items", "jobs", "kills", "reports sent again")


@dataclass(frozen=True)
class Round:
    """What dies in a round and how often, whether Prefect keeps its data in a file and the limit is shared.

    With `has_interventions` launches are stopped, cancelled, preempted and over quota meanwhile.
    With `has_every_point` it goes on until an agent has died at every named point.
    A small `max_jobs` is soon used up by the slots that agents die with in hand, and the storm is slower.
    """

    name: str
    blows: tuple[str, ...]
    share: float
    max_jobs: int = 16
    on_file: bool = False
    is_shared: bool = False
    has_every_point: bool = False
    has_interventions: bool = False


ROUNDS = (
    Round("agents only, at every point", (), 0.2, has_every_point=True),
    Round("agents only, with stops, cancels, preemptions and quotas", (), 0.1, has_interventions=True),
    Round("agents only, few slots", (), 0.1, max_jobs=4),
    Round("agents and the sandbox", ("sandbox",), 0.2),
    Round("agents and the Prefect server, a shared limit", ("prefect",), 0.2, on_file=True, is_shared=True),
    Round("all of them; agents are frozen and asked to end too", EVERY_BLOW, 0.2, on_file=True),
)


async def run_round(which: Round, seed: int, kills: int) -> tuple[list[str], dict[str, object]]:
    """Return the violations and the figures of a round."""
    home = Path(tempfile.mkdtemp(prefix="vertex-launch-chaos-prefect-"))
    async with PrefectProcess(home, on_file=which.on_file) as server:
        with prefect_client_of(PrefectServer(server.api_url, server.environment, home)):
            async with arena(
                server.api_url,
                server.environment,
                seed=seed,
                max_jobs=which.max_jobs,
                is_shared=which.is_shared,
                job_seconds=JOB_SECONDS,
                prefect_server=server,
                settings=PATIENT if which.on_file else QUICK,
            ) as scene:
                found, rows = await _kill_and_audit(scene, which, kills)
            send_what_is_left()
    shutil.rmtree(home, ignore_errors=True)
    if not found:
        shutil.rmtree(scene.directory, ignore_errors=True)
    return found, rows


async def _kill_and_audit(scene: Arena, which: Round, kills: int) -> tuple[list[str], dict[str, object]]:
    interventions = Interventions(scene.sandbox, scene.workload, scene.prefect)
    await scene.workload.push(REAL_RUNS, "real run")
    if which.has_interventions:
        await scene.sandbox.switch_on(**OVER_QUOTA)
        for kind in INTERVENTIONS:
            await scene.workload.push(EACH, kind)
    async with intervening(interventions):
        storm = Storm(scene, blows=which.blows)
        await storm.rage(kills, with_every_point=which.has_every_point)
        for _ in range(AGENTS):
            await scene.start_agent()
        await scene.until_ended(seconds=END_ON_FILE_SECONDS if which.on_file else END_SECONDS)
    found = [
        *_not_killed(which, scene.kills),
        *(f"nothing was done to {item}" for item in interventions.left),
    ]
    refused = sum(
        fault["hit"]
        for fault in await scene.sandbox.switch_off()
        if fault.get("about") == OVER_QUOTA["about"]
    )
    if which.has_interventions and not refused:
        found.append("no create was refused for quota")
    evidence = await scene.evidence()
    return [*auditor.violations(evidence), *found], figures(scene, evidence)


def _not_killed(which: Round, kills: Mapping[str, int]) -> list[str]:
    """Return which servers were to be killed and never were."""
    return [
        f"the {name} was not killed"
        for blow, name in SERVERS.items()
        if blow in which.blows and not kills.get(name)
    ]


async def main(kills: int, seed: int, only: int | None) -> int:
    """Run every round and print its figures; return the exit code."""
    started, failed, sums = time.monotonic(), 0, Counter[str]()
    for number, which in enumerate(ROUNDS):
        if only is not None and number != only:
            continue
        print(f"\n=== {which.name} (seed {seed + number})", flush=True)
        try:
            found, rows = await run_round(which, seed + number, round(kills * which.share))
        except (TimeoutError, RuntimeError) as error:
            found, rows = [str(error)], {}
        print(table(rows))
        for violation in found:
            print(f"VIOLATION: {violation}")
        failed += bool(found)
        sums.update({name: int(str(rows[name])) for name in REPORTED if name in rows})
    print(f"\n=== {failed} rounds failed; " + ", ".join(f"{count} {name}" for name, count in sums.items()))
    print(f"{time.monotonic() - started:.0f} s; seed {seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, choices=range(len(ROUNDS)), help="one round, by its number")
    options = parser.parse_args()
    sys.exit(asyncio.run(main(options.kills, options.seed, options.only)))
