"""What people and machines do to launches that are under way: stop, cancel, take a machine away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx

from tests.chaos.auditor import Job, PrefectSide
from tests.chaos.beside import beside
from tests.chaos.servers import ENTITY, SandboxProcess
from tests.chaos.workload import RUN_PROJECT, Workload

LOOK_SECONDS = 0.3
RUNNING = "JOB_STATE_RUNNING"
STOP = "mutation Stop($id: ID!) { stopRun(input: {id: $id}) { success } }"


class Interventions:
    """Does to each item what its kind says, once its job runs; `left` are those that still wait for it."""

    def __init__(self, sandbox: SandboxProcess, workload: Workload, prefect: PrefectSide) -> None:
        self._sandbox = sandbox
        self._workload = workload
        self._prefect = prefect
        self._done: set[str] = set()
        self._deeds: dict[str, Callable[[str, Job], Awaitable[None]]] = {
            "stopped": self._stop_at_wandb,
            "cancelled": self._cancel_in_prefect,
            "preempted": self._take_the_machine,
        }

    @property
    def left(self) -> set[str]:
        """The items to which nothing was done so far."""
        wanted = {item_id for item_id, kind in self._workload.kinds.items() if kind in self._deeds}
        return wanted - self._done

    async def keep_intervening(self) -> None:
        """Go on for ever; what does not work, because a server is away, is done later."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                running = {job.key: job for job in await self._sandbox.jobs() if job.state == RUNNING}
                for item_id in self.left:
                    if job := running.get(self._workload.keys[item_id]):
                        await self._deeds[self._workload.kinds[item_id]](item_id, job)
            await asyncio.sleep(LOOK_SECONDS)

    async def _stop_at_wandb(self, item_id: str, _job: Job) -> None:
        run_id = (await self._workload.run_ids())[item_id]
        global_id = base64.b64encode(f"Run:v1:{run_id}:{RUN_PROJECT}:{ENTITY}".encode()).decode()
        # Without a run, which comes up a moment after its job, there is nothing to stop yet.
        if (answer := await self._sandbox.ask(STOP, id=global_id)) and answer["stopRun"]["success"]:
            self._done.add(item_id)

    async def _cancel_in_prefect(self, item_id: str, _job: Job) -> None:
        for run in await self._prefect.flow_runs():
            if run.item_id == item_id:
                await self._prefect.cancel(run.flow_run_id)
                self._done.add(item_id)

    async def _take_the_machine(self, item_id: str, job: Job) -> None:
        await self._sandbox.switch_on(
            server="vertex",
            what="state",
            operation="ListCustomJobs",
            about=job.name.rpartition("/")[2],
            state="JOB_STATE_FAILED",
            code="UNAVAILABLE",
            message="The replica workerpool0-0 was preempted.",
        )
        self._done.add(item_id)


@contextlib.asynccontextmanager
async def intervening(interventions: Interventions) -> AsyncIterator[None]:
    """Intervene while the body runs."""
    async with beside(interventions.keep_intervening()):
        yield
