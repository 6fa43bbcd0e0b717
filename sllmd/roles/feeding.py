"""Which bytes a worker may copy to its devices, told while the rest is on its way to DRAM.

Owns: the pace. Without a cap a worker hears of bytes as they arrive. With one it hears of them in turns, one
after the other on each device, whoever's they are; a CPU maps what is in DRAM, and waits its turns all the
same, so that a cap can be tried without a GPU.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence

from sllmd.engine.replica import Replica
from sllmd.loader.gauge import Throttle
from sllmd.loader.status import LoadReport
from sllmd.loader.tier import Lease

TURN_SECONDS = 0.02
"""Longest turn: how finely two loads share a device, and a copy overlaps what is still arriving."""


class Feed:
    """The ways from DRAM to this node's devices."""

    def __init__(self, bandwidth_max_bytes: int) -> None:
        """``bandwidth_max_bytes``: per second and device; 0: no cap."""
        self.bandwidth_max_bytes = bandwidth_max_bytes
        self._links: defaultdict[str, Throttle] = defaultdict(lambda: Throttle(bandwidth_max_bytes))

    async def pass_on(
        self, lease: Lease, replica: Replica, devices: Sequence[str]
    ) -> tuple[LoadReport, float]:
        """Return when ``replica`` has been told of all bytes: the load's report, and how long that took
        beyond their arrival in DRAM. Raises the load's error."""
        loading = asyncio.ensure_future(_arrival(lease))
        told = (0,) * len(lease.memory)
        try:
            while not (loading.done() and told == lease.bytes_ready()):
                if loading.done():
                    loading.result()
                if told == lease.bytes_ready():
                    changed = asyncio.ensure_future(lease.progress_changed())
                    await asyncio.wait([changed, loading], return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
                told = await self._turn(told, lease.bytes_ready(), devices)
                replica.progress(told)
            report, arrived_seconds = loading.result()
            return report, time.monotonic() - arrived_seconds
        finally:
            loading.cancel()

    async def _turn(
        self, told: tuple[int, ...], ready: tuple[int, ...], devices: Sequence[str]
    ) -> tuple[int, ...]:
        """What may be told after the next turn on each device."""
        if not self.bandwidth_max_bytes:
            return ready
        most = max(1, int(self.bandwidth_max_bytes * TURN_SECONDS))
        now = ends = time.monotonic()
        after = []
        for number, (before, there) in enumerate(zip(told, ready, strict=True)):
            after.append(min(there, before + most))
            link = self._links[devices[min(number, len(devices) - 1)]]
            ends = max(ends, link.book(after[-1] - before, now)[1])
        await asyncio.sleep(ends - now)
        return tuple(after)


async def _arrival(lease: Lease) -> tuple[LoadReport, float]:
    """The report of a load, and when its last byte was in DRAM."""
    return await lease.loaded(), time.monotonic()
