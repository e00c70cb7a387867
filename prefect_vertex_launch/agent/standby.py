"""Whether an agent that began earlier is at work on the same queues, so that a later one is not needed.

A schedule starts agents again and again, so that one that died is followed by another. Prefect's own
limit of runs for a deployment is no guard against two of them: it ends the run it guards when it cannot
renew its lease, and counts runs that nobody can end (prefect 3.8, flow_engine and deployment limits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

from prefect_vertex_launch.coordination.heartbeat import HEARTBEAT_LABEL, AgentObserver, read_agents
from prefect_vertex_launch.coordination.prefect_api import PREFECT_FAILURES
from prefect_vertex_launch.core.clean_log import clean_log
from prefect_vertex_launch.core.clock import Clock

logger = clean_log("prefect.vertex-launch.agent")

LOOK_SECONDS = 5.0


async def find_predecessor(
    client: PrefectClient,
    flow_run_id: UUID,
    queues: Sequence[str],
    *,
    is_over: Callable[[], bool],
    clock: Clock,
) -> FlowRun | None:
    """Return an earlier agent of one of these queues whose heart beats, or None once there surely is none.

    A beat is seen within some 15 s; an agent that died without a word is told from one that is at work
    after a minute and a half. Ends early with None when `is_over`.
    """
    observer = AgentObserver(client, clock=clock)
    beats: dict[UUID, object] = {}
    while not is_over():
        try:
            own = await client.read_flow_run(flow_run_id)
            agents = await read_agents(client)
        except PREFECT_FAILURES as error:
            logger.warning("Nobody could be asked whether another agent is at work: %s", error)
        else:
            earlier = [run for run in agents if _shares(run, queues) and _began(run) < _began(own)]
            at_work = observer.still_at_work(earlier)
            for run in at_work:
                if beats.setdefault(run.id, beat := run.labels.get(HEARTBEAT_LABEL)) != beat:
                    return run
            if not at_work:
                return None
        await clock.sleep(LOOK_SECONDS)
    return None


def _shares(run: FlowRun, queues: Sequence[str]) -> bool:
    return not set(queues).isdisjoint(run.parameters.get("queues", ()))


def _began(run: FlowRun) -> tuple[float, str]:
    """Return a place in an order that is the same for all who read it."""
    return (run.start_time.timestamp() if run.start_time else float("inf"), str(run.id))
