"""Agents as real processes that are killed, and an audit of what became of every item."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import pytest

from tests.chaos import auditor
from tests.chaos.arena import QUICK, arena, how_at
from tests.chaos.figures import figures, table
from tests.chaos.kill_points import AFTER, BEFORE, UNANSWERED
from tests.chaos.storm import AGENTS, Storm
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import HANG_SECONDS, finished

KILLS = 20
SEED = 1
# Half of the kills of the storm; `make chaos` has all the points.
POINTS = (
    (BEFORE, "create"),
    (UNANSWERED, "create"),
    (AFTER, "create"),
    (BEFORE, "acknowledge"),
    (AFTER, "acknowledge"),
    (BEFORE, "report"),
    (UNANSWERED, "report"),
    (AFTER, "report"),
    (AFTER, "create the flow run"),
    (AFTER, "take over"),
)
# Whoever comes next finds a launch there, a job that it has no answer about, or an end that is told already.
RELAY = (
    (AFTER, "create the flow run"),
    (AFTER, "acknowledge"),
    (UNANSWERED, "create"),
    (AFTER, "create"),
    (UNANSWERED, "report"),
)
# On a busy machine an agent is alive although it is silent for two seconds.
SLOWER: Mapping[str, Any] = {
    **QUICK,
    "prefect_vertex_launch.coordination.heartbeat.HEARTBEAT_SECONDS": 0.5,
    "prefect_vertex_launch.coordination.heartbeat.DOUBT_SECONDS": 2.5,
    "prefect_vertex_launch.coordination.heartbeat.GONE_SECONDS": 5.0,
    "prefect_vertex_launch.coordination.heartbeat.LOOK_AWAY_SECONDS": 6.0,
}


@pytest.mark.slow
async def test_agents_that_die_one_after_the_other_lose_double_and_leak_nothing(
    prefect_api: PrefectServer,
) -> None:
    """One agent at a time: each dies at its point, and the next one goes on with what it finds."""
    async with arena(
        prefect_api.api_url,
        prefect_api.environment,
        seed=SEED,
        max_jobs=4,
        job_seconds=0.1,
        ends_leases=True,
        settings=SLOWER,
        lease_seconds=10.0,
    ) as scene:
        await scene.workload.push(1, "fails")
        await scene.workload.push(1, "succeeds")
        for point in RELAY:
            await scene.workload.push(1, "fails")
            agent = await scene.start_agent((*point, 1))
            assert await finished(agent.ended) == -signal.SIGKILL
            await scene.count_death(agent)
        await scene.start_agent()
        await scene.until_ended(seconds=HANG_SECONDS)
        evidence = await scene.evidence()

    assert auditor.violations(evidence) == []
    assert scene.kills == {how_at(*point): 1 for point in RELAY}
    assert scene.watch.sights >= len(RELAY)


# A minute or two: how soon an agent comes to the point it is to die at is a matter of luck.
@pytest.mark.proof
@pytest.mark.timeout(1800)
async def test_twenty_kills_of_agents_lose_double_and_leak_nothing(prefect_api: PrefectServer) -> None:
    async with arena(
        prefect_api.api_url,
        prefect_api.environment,
        seed=SEED,
        max_jobs=4,
        job_seconds=0.5,
        ends_leases=True,
        submissions_per_minute=1000,
    ) as scene:
        await scene.workload.push(1, "real run")
        # There is something to report for as many agents as are to die of it.
        await scene.workload.push(3, "fails")
        storm = Storm(scene, points=POINTS)
        await storm.rage(KILLS, with_every_point=True)
        for _ in range(AGENTS):
            await scene.start_agent()
        await scene.until_ended(seconds=HANG_SECONDS)
        evidence = await scene.evidence()
        print(table(figures(scene, evidence)))

    assert auditor.violations(evidence) == []
    assert storm.missed == []
    assert scene.watch.sights >= KILLS
    # Two may die between one look and the next.
    assert sum(scene.kills.values()) >= KILLS
