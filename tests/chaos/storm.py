"""A storm: agents die at named points and at random moments, and what they depend on dies as well."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tests.chaos.arena import LOOK_SECONDS, Arena, how_at
from tests.chaos.kill_points import POINTS
from tests.chaos.nursery import AgentProcess

AGENTS = 3
# How their kills are counted.
SANDBOX, PREFECT_SERVER = "sandbox", "Prefect server"
# So many items at least wait at W&B while agents are killed, so that whoever starts has something to take.
WAITING_ITEMS = 3
# Within this an agent that serves its queue comes to most of its effects, and at times to the adoption of
# what others left. One that is to die at a named point is killed when it has not come to it by then.
LIFETIME_SECONDS = (0.0, 4.0)
LIFETIME_WITH_POINT_SECONDS = 12.0
BLOW_SECONDS = (2.0, 6.0)
AWAY_SECONDS = (0.0, 4.0)
# Longer than it takes until an agent is taken for gone.
FROZEN_SECONDS = (1.0, 15.0)
# A storm that has not come to its end by then has a point that no agent comes to.
STORM_SECONDS = 1200.0


class Storm:
    """Three agents at work at any time, each doomed; between their deaths the `blows`, in turns.

    Every other agent is to die at a named point: `points` in their order, again and again. One that an agent
    has not come to is the next one's.
    """

    def __init__(
        self, arena: Arena, *, blows: Sequence[str] = (), points: Sequence[tuple[str, str]] = POINTS
    ) -> None:
        self._arena = arena
        self._random = arena.random
        self._points = points
        self._due: deque[tuple[str, str, int]] = deque()
        self._is_points_turn = False
        # When each agent is to be killed; None as long as it does not serve.
        self._doomed: dict[AgentProcess, float | None] = {}
        self._blows = blows
        self._blowing: set[asyncio.Task[None]] = set()

    @property
    def missed(self) -> list[tuple[str, str]]:
        """The points at which no agent has died so far."""
        return [point for point in self._points if not self._arena.kills.get(how_at(*point))]

    async def rage(
        self, kills: int, *, with_every_point: bool = False, seconds: float = STORM_SECONDS
    ) -> None:
        """Go on until there were so many kills, and one at every point if that is wanted.

        In the end all servers are up and nobody is frozen. Raises TimeoutError with what it has waited for.
        """
        beside = asyncio.create_task(self._keep_blowing()) if self._blows else None
        try:
            async with asyncio.timeout(seconds):
                while sum(self._arena.kills.values()) < kills or (with_every_point and self.missed):
                    await self._arena.push_up_to(WAITING_ITEMS)
                    await self._replace_the_dead()
                    await asyncio.sleep(LOOK_SECONDS)
                    await self._kill_the_doomed()
                    if beside is not None and beside.done():
                        beside.result()
        except TimeoutError:
            raise TimeoutError(f"{dict(self._arena.kills)}, and none at {self.missed}") from None
        finally:
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)
        await asyncio.gather(*self._blowing)
        self._arena.mark("the last kill")

    async def _replace_the_dead(self) -> None:
        while len(self._arena.nursery.alive) < AGENTS:
            agent = await self._arena.start_agent(self._next_point())
            self._doomed[agent] = None

    def _next_point(self) -> tuple[str, str, int] | None:
        self._is_points_turn = not self._is_points_turn
        if not self._is_points_turn:
            return None
        if not self._due:
            # The second time at times: then it has a launch under way already.
            self._due.extend((*point, self._random.randint(1, 2)) for point in self._points)
        return self._due.popleft()

    async def _kill_the_doomed(self) -> None:
        for agent in [*self._doomed]:
            if agent not in self._doomed:
                continue  # frozen while another one was killed
            until = self._doomed[agent]
            if not agent.is_alive:
                await self._arena.count_death(agent)
                del self._doomed[agent]
            elif until is None:
                if agent.serves:
                    lifetime = self._random.uniform(*LIFETIME_SECONDS)
                    self._doomed[agent] = time.monotonic() + (
                        LIFETIME_WITH_POINT_SECONDS if agent.point else lifetime
                    )
            elif time.monotonic() >= until:
                del self._doomed[agent]
                if agent.point is not None:
                    self._due.appendleft((*agent.point[:2], 1))
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
        self._arena.kills[SANDBOX] += 1
        await asyncio.sleep(self._random.uniform(*AWAY_SECONDS))
        await self._arena.sandbox.start()

    async def _kill_prefect(self) -> None:
        server = self._arena.prefect_server
        assert server is not None
        self._arena.has_outages = True
        await server.kill()
        self._arena.kills[PREFECT_SERVER] += 1
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
