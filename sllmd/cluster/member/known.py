"""What this node knows of the catalogue, wherever it comes from: its own log, or a member that it follows.

Never goes back: of two sources the one that is further counts. Points are compared by term first: along one
log both grow together, and after ``sllmd recover`` the cluster that goes on is ahead of what was lost with
the others, however long that log was.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from weakref import WeakSet

from sllmd.cluster.catalogue import EMPTY, Catalogue
from sllmd.cluster.control import Latest, View
from sllmd.cluster.member.bell import Bell

Point = tuple[int, int]
"""Term and position of an entry that is agreed."""


class Known:
    """The newest state, who watches it, and who waits for it to get somewhere."""

    def __init__(self, age_seconds: Callable[[], float]) -> None:
        self.catalogue: Catalogue = EMPTY
        self.position = 0
        self.term = 0
        """Of the entry at ``position``: a place in the log is sure only together with its term."""
        self.moved = Bell()
        self._age_seconds = age_seconds
        self._watching: WeakSet[Latest[View]] = WeakSet()
        self._waiting: list[tuple[Point, int, asyncio.Future[None]]] = []
        self._order = count()

    def view(self) -> View:
        """As the rest of the daemon sees it."""
        return View(self.catalogue, self.position, self._age_seconds())

    def views(self) -> Latest[View]:
        """Every change from now on; forgotten with the iterator."""
        latest: Latest[View] = Latest()
        self._watching.add(latest)
        return latest

    def advance(self, catalogue: Catalogue, position: int, term: int) -> None:
        """The state after the entry at ``position``; nothing where more is known already."""
        if (term, position) <= (self.term, self.position):
            return
        self.catalogue, self.position, self.term = catalogue, position, term
        while self._waiting and self._waiting[0][0] <= (term, position):
            _, _, reached = heapq.heappop(self._waiting)
            if not reached.done():
                reached.set_result(None)
        if self._watching:
            view = self.view()
            for latest in self._watching:
                latest.put(view)
        self.moved.ring()

    async def reach(self, point: Point) -> None:
        """Wait until this much is known here."""
        if point <= (self.term, self.position):
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (point, next(self._order), reached))
        await reached
