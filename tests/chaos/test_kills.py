"""Agents as real processes that are killed, and an audit of what became of every item."""

from __future__ import annotations

from tests.chaos import auditor
from tests.chaos.arena import arena
from tests.chaos.figures import figures, table
from tests.chaos.storm import AGENTS, Storm
from tests.integration.conftest import PrefectServer

KILLS = 20
SEED = 1


async def test_twenty_kills_of_agents_lose_double_and_leak_nothing(prefect_api: PrefectServer) -> None:
    async with arena(
        prefect_api.api_url,
        prefect_api.environment,
        seed=SEED,
        max_jobs=16,
        job_seconds=0.5,
        submissions_per_minute=1000,
    ) as scene:
        await scene.workload.push(1, "real run")
        await Storm(scene).rage(KILLS)
        for _ in range(AGENTS):
            await scene.start_agent()
        await scene.until_ended(seconds=60)
        evidence = await scene.evidence(leases_end=False)
        print(table(figures(scene, evidence)))

    assert auditor.violations(evidence) == []
    # Two may die between one look and the next.
    assert sum(scene.kills.values()) >= KILLS
