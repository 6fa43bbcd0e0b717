"""What wakes those who wait at the leader, one after the other, as their turns are.

Invariant: who hears a ring after having looked at the ``rings`` before it misses none.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sllmd.scheduler.turns import Turns


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """Somebody who waits, once."""

    key: str
    priority: int
    rung: asyncio.Future[None]


class Bell:
    """See the module."""

    def __init__(self) -> None:
        self.rings = 0
        self._turns = Turns()
        self._waiting: list[Waiter] = []

    def ring(self) -> None:
        """Something has changed: everybody looks again, and whose turn it is looks first."""
        self.rings += 1
        waiting, self._waiting = self._waiting, []
        for waiter in self._turns.order(waiting):
            if not waiter.rung.done():
                waiter.rung.set_result(None)

    async def wait(self, rings: int, *, key: str = "", priority: int = 0) -> None:
        """Until it rings, or at once if it has since ``rings`` was read."""
        if self.rings != rings:
            return
        waiter = Waiter(key, priority, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.rung
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def served(self, *, key: str, priority: int) -> None:
        """One of ``key`` got what it waited for."""
        self._turns.served(Waiter(key, priority, asyncio.get_running_loop().create_future()))
