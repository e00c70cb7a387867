"""The flow `agent`: takes run queue items under the concurrency limits and supervises their launches.

Every launch is a flow run of its own in this event loop, so thousands of waiting items cost one process. The
agent keeps nothing that cannot be found again in W&B, Prefect and Vertex AI: when it stops or dies the jobs
run on, and the next agent goes on with their launches.
"""

from __future__ import annotations

import contextlib
from typing import Any

from prefect import State, flow
from prefect.runtime import flow_run as runtime
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed, Failed

from prefect_vertex_launch.agent.agent import CANCELLED_IN_PREFECT, TERMINATED, Agent
from prefect_vertex_launch.agent.sigterm import on_termination
from prefect_vertex_launch.coordination.prefect_client import prefect_client
from prefect_vertex_launch.flows.launch_engine import start_launch
from prefect_vertex_launch.launch.queue_context import own_flow_run_id

STOOD_ASIDE = "StoodAside"


def _run_name() -> str:
    return f"agent {', '.join(runtime.parameters['queues'])}"


# PREFECT_FLOWS_DEFAULT_RETRIES would make an agent that has ended serve its queues once more.
@flow(name="agent", flow_run_name=_run_name, retries=0, persist_result=False, log_prints=False)
async def agent(
    queues: list[str],
    drain: bool = False,
    max_runtime_minutes: float | None = 60,
    stand_aside: bool = False,
) -> State[Any]:
    """Launch the runs of W&B queues on Vertex AI.

    Args:
        queues: Names of VertexLaunchQueue blocks, one for each queue.
        drain: End when the queues are empty and every launch has ended.
        max_runtime_minutes: End after this time and leave what is under way to the next agent;
            empty for no end.
        stand_aside: End at once if an agent that began earlier is at work on one of the queues.
    """
    # For each flow run that sends heartbeats Prefect keeps a thread, and here may be a thousand launches:
    # the agent's own heartbeat speaks for them all.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(prefect_client())
            work = Agent(
                client,
                own_flow_run_id(),
                drain=drain,
                max_runtime_minutes=max_runtime_minutes,
                start=start_launch,
            )
            stack.enter_context(on_termination(lambda: work.end_for(TERMINATED)))
            if stand_aside and (other := await work.predecessor(queues)):
                return Completed(name=STOOD_ASIDE, message=f"{other} is at work.")
            for queue in dict.fromkeys(queues):
                await work.open(queue, stack)
            reason = await work.run()
    message = f"Ended because {reason}. {work.tally}"
    if work.failures:
        unserved = " ".join(f"{queue} was not served: {error}" for queue, error in work.failures.items())
        return Failed(message=f"{message} {unserved}")
    if reason == CANCELLED_IN_PREFECT:
        return Cancelled(message=message)
    return Completed(message=message)
