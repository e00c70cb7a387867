"""What a launch says on its flow run's page in Prefect: its state, links, a diagnosis, and how it ended."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import State
from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event

from prefect_vertex_launch.coordination import launch_record
from prefect_vertex_launch.coordination.prefect_api import read_flow_runs


class FlowRunPage:
    """The pages of a queue's launches.

    Every method raises httpx.HTTPError when Prefect cannot be reached. Links and texts belong to the
    flow run that the code runs in.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def show_state(self, flow_run_id: UUID, state: State[Any]) -> None:
        """Give a flow run a state; one that somebody is cancelling or that has ended keeps its own."""
        current = (await self._client.read_flow_run(flow_run_id)).state
        if current is None or not current.is_final():
            await self._client.set_flow_run_state(flow_run_id, state)

    async def mark(self, flow_run_id: UUID, name: str) -> None:
        """Mark a flow run, for whoever goes on with it."""
        await self._client.update_flow_run_labels(flow_run_id, {**launch_record.flag(name)})

    async def leave_link(self, link: str, text: str, description: str) -> None:
        """Leave a link on the page."""
        await acreate_link_artifact(link=link, link_text=text, description=description)

    async def leave_text(self, markdown: str, description: str) -> None:
        """Leave a text on the page."""
        await acreate_markdown_artifact(markdown=markdown, description=description)

    def emit(self, event: str, resource: dict[str, str], payload: dict[str, Any]) -> None:
        """Emit an event, by which an automation can act."""
        emit_event(event, resource=resource, payload=payload)

    async def cancelling(self, tag: str) -> set[UUID]:
        """Return the flow runs with this tag that somebody is cancelling."""
        found = await read_flow_runs(self._client, tags=[tag], states=[StateType.CANCELLING])
        return {flow_run.id for flow_run in found}
