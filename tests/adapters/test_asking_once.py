"""What Prefect's client must not ask for again by itself: the launch may be somebody else's by then."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from prefect_vertex_launch.coordination.counter import take_off
from prefect_vertex_launch.coordination.launch_record import owner_tag
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.core.clock import SystemClock
from prefect_vertex_launch.core.identity import QueueIdentity

TAKE = "PATCH"
FORCE_STATE = "set_state"
TAKE_OFF = "decrement"

QUEUE = QueueIdentity("api.wandb.ai", "team", "queue")


def server(flow_run: FlowRun, refuses: str, asked: list[str]) -> FastAPI:
    """Return a server that knows one flow run, and refuses one kind of call as if it were overloaded."""
    app = FastAPI()

    @app.api_route("/api/{path:path}", methods=["GET", "POST", "PATCH"])
    async def answer(path: str, request: Request) -> Response:
        if path.startswith("csrf"):
            return Response(status_code=404)
        call = TAKE if request.method == "PATCH" else path.rsplit("/", 1)[-1]
        asked.append(call)
        if call == refuses:
            return Response(status_code=503, headers={"Retry-After": "0"})
        if call == "filter":
            return Response(f"[{flow_run.model_dump_json()}]", media_type="application/json")
        return Response("[]", media_type="application/json")

    return app


@pytest.mark.parametrize("refuses", [TAKE, FORCE_STATE])
async def test_neither_who_has_a_launch_nor_a_forced_state_is_written_again_later(
    refuses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_vertex_launch.coordination.launch_store.CONFIRM_SECONDS", 0.1)
    owner_id, asked = uuid4(), list[str]()
    flow_run = FlowRun(flow_id=uuid4(), tags=[owner_tag(owner_id)], state=Crashed())
    async with PrefectClient(server(flow_run, refuses, asked)) as client:
        runs = LaunchStore(client, block_name="queue", queue=QUEUE, owner_id=owner_id, clock=SystemClock())

        with pytest.raises(httpx.HTTPStatusError):
            await runs.adopt([flow_run])

    assert asked.count(refuses) == 1


async def test_slots_are_not_taken_off_again_later() -> None:
    asked = list[str]()
    async with PrefectClient(server(FlowRun(flow_id=uuid4()), TAKE_OFF, asked)) as client:
        with pytest.raises(httpx.HTTPStatusError):
            await take_off(client, ["limit"], 1, occupancy_seconds=300.0, clock=SystemClock())

    assert asked.count(TAKE_OFF) == 1
