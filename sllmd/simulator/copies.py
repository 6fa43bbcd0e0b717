"""What the nodes' DRAM holds: bytes that passed through, and bytes that an idle SSD lifts ahead of need."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sllmd.core.ids import ModelName, NodeId
from sllmd.scheduler import reports
from sllmd.scheduler.eviction import NoRoom, choose, copies_of
from sllmd.scheduler.facts import Tier
from sllmd.scheduler.prefetch import Prefetch, prefetch
from sllmd.simulator.truth import Paths, Replica
from sllmd.simulator.world import World


class Copies:
    """``asleep_on`` tells which replicas sleep on a node; ``go`` ends one."""

    def __init__(
        self,
        world: World,
        paths: Paths,
        asleep_on: Callable[[NodeId], Collection[Replica]],
        go: Callable[[Replica], None],
    ) -> None:
        self._world = world
        self._paths = paths
        self._asleep_on = asleep_on
        self._go = go
        self._lifting: dict[NodeId, ModelName] = {}

    def keep(self, replica: Replica) -> None:
        """Its bytes have passed through DRAM: they stay there if there is room, or worse ones go."""
        world, model = self._world, replica.model
        node = world.view.nodes[replica.node]
        if model.name in node.dram:
            return
        missing = model.total_bytes - (node.dram_bytes - node.dram_used_bytes)
        going = choose(copies_of(world.view, node, Tier.DRAM, world.now), missing)
        if not isinstance(going, NoRoom):
            self._change(replica.node, going, model.name)

    def _change(self, node: NodeId, going: Collection[ModelName], coming: ModelName) -> None:
        """Who sleeps there goes with its copy."""
        for replica in self._asleep_on(node):
            if replica.model.name in going:
                self._go(replica)
        held = self._world.view.nodes[node].dram
        lost = [reports.CopyLost(Tier.DRAM, name) for name in going if name in held]
        self._world.tell(node, *lost, reports.CopyGained(Tier.DRAM, coming))

    def lift(self, node: NodeId) -> None:
        """Use an idle SSD."""
        world = self._world
        if node in self._lifting or not self._paths.ssd_idle(node, world.now):
            return
        found = prefetch(world.view, world.view.nodes[node], world.now)
        if found is not None:
            self._lifting[node] = found.model
            seconds = world.view.models[found.model].model.total_bytes / world.hardware.from_ssd
            world.at(world.now + seconds, lambda: self._lifted(node, found))

    def stop_lift(self, node: NodeId) -> None:
        """Somebody waits for bytes of that SSD, who goes first; the lift begins anew."""
        self._lifting.pop(node, None)

    def _lifted(self, node: NodeId, found: Prefetch) -> None:
        if self._lifting.get(node) != found.model:
            return
        del self._lifting[node]
        view = self._world.view
        seen = view.nodes[node]
        held = {copy.model for copy in copies_of(view, seen, Tier.DRAM, self._world.now) if copy.held}
        room = seen.dram_bytes - seen.dram_used_bytes + sum(seen.dram.get(name, 0) for name in found.evict)
        fits = room >= view.models[found.model].model.total_bytes
        if found.model not in seen.dram and fits and not held.intersection(found.evict):
            self._change(node, found.evict, found.model)
        self.lift(node)
