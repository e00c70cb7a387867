"""Agents as real processes that are killed, and an audit of what became of every item."""

from __future__ import annotations

import pytest

from tests.chaos import auditor
from tests.chaos.arena import arena
from tests.chaos.figures import figures, table
from tests.chaos.kill_points import AFTER, BEFORE, UNANSWERED
from tests.chaos.storm import AGENTS, Storm
from tests.end_to_end.prefect_server import PrefectServer

KILLS = 20
SEED = 1
STORM_SECONDS = 200.0
# Half of the kills; `make chaos` has all the points.
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


# A minute or two: how soon an agent comes to the point it is to die at is a matter of luck.
@pytest.mark.timeout(360)
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
        await storm.rage(KILLS, with_every_point=True, seconds=STORM_SECONDS)
        for _ in range(AGENTS):
            await scene.start_agent()
        await scene.until_ended(seconds=60)
        evidence = await scene.evidence()
        print(table(figures(scene, evidence)))

    assert auditor.violations(evidence) == []
    assert storm.missed == []
    assert scene.watch.sights >= KILLS
    # Two may die between one look and the next.
    assert sum(scene.kills.values()) >= KILLS
