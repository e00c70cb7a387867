"""A storm: agents die at named points and at random moments, and what they depend on dies as well."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from random import Random

from tests.chaos.arena import LOOK_SECONDS, Arena
from tests.chaos.kill_points import POINTS
from tests.chaos.nursery import AgentProcess

AGENTS = 3
# So many items at least wait at W&B while agents are killed, so that whoever starts has something to take.
WAITING_ITEMS = 3
# Within this an agent that serves its queue comes to most of its effects, and at times to the adoption of
# what others left. One that is to die at a named point is killed when it has not come to it by then.
LIFETIME_SECONDS = (0.0, 4.0)
LIFETIME_WITH_POINT_SECONDS = 5.0
BLOW_SECONDS = (2.0, 6.0)
AWAY_SECONDS = (0.0, 4.0)
# Longer than it takes until an agent is taken for gone.
FROZEN_SECONDS = (1.0, 15.0)


class Storm:
    """Three agents at work at any time, each doomed; between their deaths the `blows`, in turns."""

    def __init__(self, arena: Arena, *, blows: Sequence[str] = ()) -> None:
        self._arena = arena
        self._random = arena.random
        self._points = _points(arena.random)
        # When each agent is to be killed; None as long as it does not serve.
        self._doomed: dict[AgentProcess, float | None] = {}
        self._blows = blows
        self._blowing: set[asyncio.Task[None]] = set()

    async def rage(self, kills: int) -> None:
        """Go on until there were so many kills; in the end all servers are up and nobody is frozen."""
        beside = asyncio.create_task(self._keep_blowing()) if self._blows else None
        try:
            while sum(self._arena.kills.values()) < kills:
                await self._arena.push_up_to(WAITING_ITEMS)
                await self._replace_the_dead()
                await asyncio.sleep(LOOK_SECONDS)
                await self._kill_the_doomed()
                if beside is not None and beside.done():
                    beside.result()
        finally:
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)
        await asyncio.gather(*self._blowing)
        self._arena.mark("the last kill")

    async def _replace_the_dead(self) -> None:
        while len(self._arena.nursery.alive) < AGENTS:
            agent = await self._arena.start_agent(next(self._points))
            self._doomed[agent] = None

    async def _kill_the_doomed(self) -> None:
        for agent in [*self._doomed]:
            if agent not in self._doomed:
                continue  # frozen while another one was killed
            until = self._doomed[agent]
            if not agent.is_alive:
                self._arena.count_death(agent)
                self._doomed.pop(agent)
            elif until is None:
                if agent.serves:
                    lifetime = self._random.uniform(*LIFETIME_SECONDS)
                    self._doomed[agent] = time.monotonic() + (
                        LIFETIME_WITH_POINT_SECONDS if agent.point else lifetime
                    )
            elif time.monotonic() >= until:
                del self._doomed[agent]
                await self._arena.kill(agent)

    async def _keep_blowing(self) -> None:
        known: Mapping[str, Callable[[], Awaitable[None]]] = {
            "sandbox": self._kill_sandbox,
            "prefect": self._kill_prefect,
            "freeze": self._freeze,
            "terminate": self._terminate,
        }
        while True:
            for blow in self._random.sample([*self._blows], len(self._blows)):
                await asyncio.sleep(self._random.uniform(*BLOW_SECONDS))
                # Not to be cut short: a server that was killed has to come back.
                task = asyncio.ensure_future(known[blow]())
                self._blowing.add(task)  # pyright: ignore[reportArgumentType]
                await asyncio.shield(task)

    async def _kill_sandbox(self) -> None:
        self._arena.has_outages = True
        await self._arena.sandbox.kill()
        self._arena.kills["sandbox"] += 1
        await asyncio.sleep(self._random.uniform(*AWAY_SECONDS))
        await self._arena.sandbox.start()

    async def _kill_prefect(self) -> None:
        server = self._arena.prefect_server
        assert server is not None
        self._arena.has_outages = True
        await server.kill()
        self._arena.kills["Prefect server"] += 1
        await asyncio.sleep(self._random.uniform(*AWAY_SECONDS))
        await server.start()

    async def _freeze(self) -> None:
        """Stop an agent for a while; it wakes up and believes that nothing has happened."""
        if not (alive := self._arena.nursery.alive):
            return
        agent = self._random.choice(alive)
        self._doomed.pop(agent, None)
        agent.send(signal.SIGSTOP)
        self._arena.others["agents frozen"] += 1
        await asyncio.sleep(self._random.uniform(*FROZEN_SECONDS))
        agent.send(signal.SIGCONT)
        if agent.is_alive:
            self._doomed[agent] = time.monotonic() + self._random.uniform(*LIFETIME_SECONDS)

    async def _terminate(self) -> None:
        """Ask an agent to end, as a deployment does."""
        if not (alive := self._arena.nursery.alive):
            return
        agent = self._random.choice(alive)
        agent.is_asked_to_end = True
        agent.send(signal.SIGTERM)
        self._arena.others["agents asked to end"] += 1


def _points(random: Random) -> Iterator[tuple[str, str, int] | None]:
    """Every named point in a random order, again and again, and after each of them nothing."""
    while True:
        for when, effect in random.sample(POINTS, len(POINTS)):
            yield when, effect, random.randint(1, 2)
            yield None
