"""How agents share the calls to Vertex AI: on a real Prefect server, which is all they know each other by."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Running

from prefect_vertex_launch.coordination.call_share import CallShare
from prefect_vertex_launch.coordination.heartbeat import HEARTBEAT_LABEL
from prefect_vertex_launch.flows.agent import agent
from prefect_vertex_launch.launch.queue_context import QueueContext, open_queue
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer

GOOGLE_ALLOWS = 600


class Looks:
    """A clock on which a pause is over when the test wants the next look."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._asleep = asyncio.Event()
        self._wake = asyncio.Event()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self._asleep.set()
        await self._wake.wait()
        self._wake.clear()
        self.seconds += seconds

    async def first(self) -> None:
        await self._asleep.wait()

    async def next(self) -> None:
        self._asleep.clear()
        self._wake.set()
        await self._asleep.wait()


class Still(Looks):
    """A clock that stands still."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


class Colleague:
    """An agent's flow run, the queue that it serves and its share of the calls."""

    def __init__(self, client: PrefectClient, flow_run_id: UUID, queue: QueueContext) -> None:
        self.client = client
        self.flow_run_id = flow_run_id
        self.jobs = queue.services[0]
        self.looks = Looks()
        self.share = CallShare(client, flow_run_id, queues=[queue], clock=self.looks)

    async def beat(self, heartbeat: int) -> None:
        await self.client.update_flow_run_labels(self.flow_run_id, {HEARTBEAT_LABEL: heartbeat})

    async def end(self) -> None:
        await self.client.set_flow_run_state(self.flow_run_id, Completed(), force=True)

    @property
    def allowed(self) -> int:
        """How many calls a minute it may send, told from the one that it has sent."""
        return round(1 / self.jobs.used_share)


Join = Callable[[str], Awaitable[Colleague]]


@pytest.fixture
async def join(prefect_api: PrefectServer, sandbox: Sandbox) -> AsyncIterator[Join]:
    """Start an agent for a project; a region of its own stands for a process: nobody has its budget."""
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(get_client())
        regions = itertools.count()

        async def start(project: str) -> Colleague:
            run = await client.create_flow_run(agent, parameters={"queues": [project]}, state=Running())
            queue = LaunchQueue(sandbox)
            await queue.create(project=project, location=f"region-{next(regions)}", calls_per_minute=300)
            context = await stack.enter_async_context(open_queue(queue.name, clock=Still()))
            colleague = Colleague(client, run.id, context)
            await colleague.beat(1)
            stack.push_async_callback(colleague.end)
            sharing = asyncio.create_task(colleague.share.keep_sharing())
            stack.callback(sharing.cancel)
            await colleague.looks.first()
            await colleague.jobs.list("")
            return colleague

        yield start


@pytest.mark.slow
async def test_agents_that_call_the_same_project_leave_room_for_each_other_and_for_one_more(join: Join):
    project = f"p-{uuid4().hex[:8]}"
    first = await join(project)
    assert first.allowed == GOOGLE_ALLOWS / 2
    second, third = await join(project), await join(project)
    assert (second.allowed, third.allowed) == (GOOGLE_ALLOWS / 3, GOOGLE_ALLOWS / 4)
    elsewhere = await join(f"p-{uuid4().hex[:8]}")
    assert elsewhere.allowed == GOOGLE_ALLOWS / 2
    await first.looks.next()
    await second.looks.next()
    assert (first.allowed, second.allowed) == (GOOGLE_ALLOWS / 4, GOOGLE_ALLOWS / 4)
    await third.end()
    await first.looks.next()
    assert first.allowed == GOOGLE_ALLOWS / 3


@pytest.mark.slow
async def test_an_agent_whose_heart_stands_still_leaves_its_share_to_the_others_and_one_that_is_slow_does_not(
    join: Join,
):
    project = f"p-{uuid4().hex[:8]}"
    gone, slow, first = await join(project), await join(project), await join(project)
    for heartbeat in range(2, 5):
        await slow.beat(heartbeat)
        assert first.allowed == GOOGLE_ALLOWS / 4
        await first.looks.next()
    assert first.allowed == GOOGLE_ALLOWS / 3
    await gone.beat(2)
    await first.looks.next()
    assert first.allowed == GOOGLE_ALLOWS / 4


async def test_without_prefect_the_shares_stay_as_they_were(join: Join, caplog: pytest.LogCaptureFixture):
    project = f"p-{uuid4().hex[:8]}"
    # Prefect's client would try for more than a minute.
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        first = await join(project)
    await join(project)
    await first.looks.next()

    async def refuse(request: httpx.Request) -> None:
        raise httpx.ConnectError("nobody is there", request=request)

    first.client._client.event_hooks["request"].append(refuse)
    await first.looks.next()
    first.client._client.event_hooks["request"].remove(refuse)
    assert "Nobody could be asked which agents share the calls" in caplog.text
    assert first.allowed == GOOGLE_ALLOWS / 3


async def test_an_agent_says_which_projects_it_calls(prefect_api: PrefectServer, sandbox: Sandbox):
    queue = LaunchQueue(sandbox)
    await queue.create(project="of-this-agent")
    ended = await agent(queues=[queue.name], drain=True, return_state=True)
    async with get_client() as client:
        run = await client.read_flow_run(ended.state_details.flow_run_id)
    assert run.labels["vertex-launch.projects"] == "of-this-agent"
