"""What is due when: calls that the machine makes of itself. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any


class Timers:
    """A heap of calls. None is ever taken back: a call looks whether it still has something to do."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = 0

    def at(self, when_seconds: float, call: Callable[[Any], None], argument: Any = None) -> None:
        """Make this call then."""
        self._count += 1
        heapq.heappush(self._heap, (when_seconds, self._count, call, argument))

    def next_seconds(self) -> float:
        """When the next call is due; infinity if there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def run(self, now_seconds: float) -> None:
        """Make the calls that are due, those that were before ``now_seconds`` and no later ones."""
        due = []
        while self._heap and self._heap[0][0] <= now_seconds:
            due.append(heapq.heappop(self._heap))
        for _, _, call, argument in due:
            call(argument)
