"""Simulated time: a heap of things that will happen, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._ids = 0

    def at(self, when: float, what: Callable[..., object], *arguments: Any) -> None:
        heapq.heappush(self._heap, (when, self.fresh_id(), what, arguments))

    def fresh_id(self) -> int:
        self._ids += 1
        return self._ids

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let things happen until then, or until ``done``; says whether it was."""
        while self._heap and self._heap[0][0] <= until:
            if done():
                return True
            when, _, what, arguments = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            what(*arguments)
        self.now = max(self.now, until)
        return done()
