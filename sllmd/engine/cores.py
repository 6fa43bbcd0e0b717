"""Which replica computes on how many of this machine's cores. Pure.

Invariant: the replicas that have work share the cores evenly and together never run more threads than there
are cores, unless there are more replicas than cores: a forward pass waits for its slowest thread, so one
thread too many can cost as much as all the others bring.
"""

from __future__ import annotations

from typing import Protocol

SPARE_FROM_CORES = 8
"""From so many cores on, one is left to the daemon, whose share of a core (0.05 ms per token) would else hold
up the other threads of a pass. With fewer, that core brings more than the pauses take."""


def compute_cores(usable: int) -> int:
    """Cores for forward passes, of those that this machine lets us use."""
    return usable - 1 if usable >= SPARE_FROM_CORES else usable


class Computes(Protocol):
    """A replica on the CPU."""

    def use_threads(self, threads: int) -> None:
        """From now on its forward passes may run so many threads."""


class CoreShares:
    """The cores, and the replicas that have work now."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._busy: dict[Computes, None] = {}

    def set_busy(self, replica: Computes, busy: bool) -> None:
        """``replica`` has work, or none any more; every busy one hears of its share when that changes it."""
        if busy == (replica in self._busy):
            return
        if busy:
            self._busy[replica] = None
        else:
            del self._busy[replica]
        for other in self._busy:
            other.use_threads(self.share)

    @property
    def share(self) -> int:
        """Threads of each busy replica."""
        return max(1, self._cores // max(1, len(self._busy)))
