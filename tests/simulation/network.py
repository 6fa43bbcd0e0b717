"""A network that loses, delays, doubles, reorders and cuts, also one way only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllmd.cluster.raft.messages import Message
from sllmd.core.ids import NodeId

if TYPE_CHECKING:
    from tests.simulation.world import World


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.cut: set[tuple[NodeId, NodeId]] = set()
        """Directions in which nothing passes."""
        self.loss = 0.0
        self.doubling = 0.0
        self.delay_seconds = (0.0002, 0.003)
        self.straggling = 0.0
        """Share of messages that take up to a hundred times as long, and so overtake each other."""
        self.sent = 0

    def send(self, message: Message) -> None:
        random = self.world.random
        self.sent += 1
        if (message.source, message.target) in self.cut or random.random() < self.loss:
            return
        self._deliver_later(message)
        if random.random() < self.doubling:
            self._deliver_later(message)

    def _deliver_later(self, message: Message) -> None:
        random = self.world.random
        low, high = self.delay_seconds
        delay = low + random.random() * (high - low)
        if random.random() < self.straggling:
            delay *= 100 * random.random()
        self.world.at(self.world.now + delay, self._deliver, message)

    def _deliver(self, message: Message) -> None:
        if (message.source, message.target) not in self.cut:
            self.world.hosts[message.target].receive(message)

    def partition(self, side: set[NodeId]) -> None:
        """Nothing passes between ``side`` and the others."""
        for source in self.world.hosts:
            for target in self.world.hosts:
                if (source in side) != (target in side):
                    self.cut.add((source, target))

    def heal(self) -> None:
        self.cut.clear()
        self.loss = self.doubling = self.straggling = 0.0
