"""Running a launch's flow run inside of the agent's event loop."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.flow_engine import run_flow_async

from prefect_vertex_launch.flows.launch import launch
from prefect_vertex_launch.launch.queue_context import QueueContext, make_current


def start_launch(flow_run: FlowRun, context: QueueContext) -> asyncio.Task[State[Any]]:
    """Run a launch in this event loop, as a flow run of its own and not as the agent's subflow."""
    variables = contextvars.copy_context()
    variables.run(_leave_parent_run)
    variables.run(make_current, context)
    return asyncio.create_task(_run(flow_run), name=f"launch {flow_run.name}", context=variables)


async def _run(flow_run: FlowRun) -> State[Any]:
    state = await run_flow_async(
        launch, flow_run=flow_run, parameters=flow_run.parameters, return_type="state"
    )
    assert isinstance(state, State)
    return state


def _leave_parent_run() -> None:
    FlowRunContext.__var__.set(None)  # pyright: ignore[reportArgumentType]
    TaskRunContext.__var__.set(None)  # pyright: ignore[reportArgumentType]
