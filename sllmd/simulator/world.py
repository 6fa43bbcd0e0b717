"""Virtual time and virtual nodes: what happens when, and how the scheduler hears of it.

Events are kept in a heap by time, then by the order in which they were made, so a seed gives one run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from sllmd.core.ids import NodeId
from sllmd.scheduler import reports
from sllmd.scheduler.facts import Model
from sllmd.scheduler.keeper import Keeper
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.simulator.hardware import Hardware


class World:
    """Nothing happens in it by itself."""

    def __init__(
        self, hardware: Hardware, models: Sequence[Model], settings: SchedulerSettings | None
    ) -> None:
        self.hardware = hardware
        self.keeper = Keeper(settings)
        self.view = self.keeper.view
        self.now = 0.0
        self.nodes = [NodeId(f"node{index}") for index in range(hardware.nodes)]
        self._sequences = dict.fromkeys(self.nodes, 0)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._made = 0
        for model in models:
            self.keeper.put_model(model)
        for node in self.nodes:
            self.keeper.take(
                reports.Inventory(
                    node,
                    0,
                    node,
                    (hardware.device_bytes,) * hardware.devices,
                    hardware.dram_bytes,
                    ssd=tuple(model.name for model in models),
                    bytes_per_second=hardware.bytes_per_second(),
                ),
                0.0,
            )

    def number(self) -> int:
        """One that nothing else has."""
        self._made += 1
        return self._made

    def at(self, seconds: float, happen: Callable[[], object]) -> None:
        """Have it happen then."""
        heapq.heappush(self._events, (seconds, self.number(), happen))

    def run_events(self) -> None:
        """Until nothing is to happen any more."""
        while self._events:
            self.now, _, happen = heapq.heappop(self._events)
            happen()

    def tell(self, node: NodeId, *changes: reports.Change) -> None:
        """A node reports to the scheduler."""
        self._sequences[node] += 1
        agreed = self.keeper.apply(reports.Report(node, self._sequences[node], changes), self.now)
        assert agreed, f"the view contradicts the simulation: {changes}"
