"""What happens to a fleet in a storm: one misfortune at a time, of four kinds, each so often."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from random import Random

from tests.storm.fleet import Daemon, Fleet

KINDS = ("kill", "pause", "partition", "restart")
PAUSE_SECONDS = 2.5
"""SIGSTOP: more than two election time-outs."""
CUT_SECONDS = 3.0
DOWN_SECONDS = 0.7
CALM_SECONDS = 0.6
"""Between two: enough to elect, not to recover altogether."""
LEADER_SHARE = 0.5
"""How often the leader is the one who is hit."""


class Nemesis:
    """Counts what it did."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._random = Random(seed)
        self.counts: Counter[str] = Counter()

    async def run(self, seconds: float, each: int) -> None:
        """For so long, and until each kind has happened so often."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end or any(self.counts[kind] < each for kind in KINDS):
            for kind in self._random.sample(KINDS, len(KINDS)):
                await getattr(self, f"_{kind}")(await self._victim())
                self.counts[kind] += 1
                await asyncio.sleep(CALM_SECONDS)

    async def _victim(self) -> Daemon:
        if self._random.random() < LEADER_SHARE:
            with contextlib.suppress(AssertionError):
                return await self._fleet.leader(seconds=2)
        return self._random.choice(self._fleet.daemons)

    async def _kill(self, victim: Daemon) -> None:
        await asyncio.to_thread(victim.kill)
        await asyncio.sleep(self._random.random() * 2 * DOWN_SECONDS)
        victim.start()
        await victim.serves()

    async def _pause(self, victim: Daemon) -> None:
        victim.pause()
        await asyncio.sleep(PAUSE_SECONDS)
        victim.resume()

    async def _partition(self, victim: Daemon) -> None:
        """1|4, 2|3, one way in, one way out; the victim is on the smaller side."""
        network = self._fleet.network
        assert network is not None, "partitions need a network"
        place = self._fleet.daemons.index(victim)
        others = [other for other in range(network.count) if other != place]
        kind = self._random.choice(("alone", "two", "deaf", "mute"))
        if kind == "alone":
            await asyncio.to_thread(network.partition, {place})
        elif kind == "two":
            await asyncio.to_thread(network.partition, {place, self._random.choice(others)})
        elif kind == "mute":
            await asyncio.to_thread(network.cut, place, others)
        else:
            for other in others:
                await asyncio.to_thread(network.cut, other, [place])
        await asyncio.sleep(CUT_SECONDS)
        await asyncio.to_thread(network.heal)

    async def _restart(self, victim: Daemon) -> None:
        await victim.end()
        victim.start()
        await victim.serves()
