"""Which node has what: the table that every node routes by, and how the leader keeps and tells it. Pure.

Versions are (epoch, number): a leader counts its changes within its epoch, and a table of a newer epoch
replaces an older one whole. A node takes no delta of an older epoch than its table's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sllmd.cluster.codec import Codec
from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.inventory import CheckpointFact, Inventory, Report, Versioned, is_urgent, merge


@dataclass(frozen=True, slots=True)
class Change:
    """A node's inventory now; None: the node is gone."""

    node: NodeId
    inventory: Inventory | None


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed from ``base`` to ``number`` within an epoch; base 0: from nothing."""

    epoch: int
    base: int
    number: int
    changes: tuple[Change, ...]


CODEC = Codec({1: Change})


@dataclass(frozen=True, slots=True)
class Table:
    """As a node has it. It stays what it is while nobody leads."""

    epoch: int = 0
    number: int = 0
    inventories: Mapping[NodeId, Inventory] = field(default_factory=dict)

    def apply(self, delta: Delta) -> Table | None:
        """The table after ``delta``; None: it does not build on this one, or is of an older epoch."""
        fresh = delta.base == 0 and delta.epoch >= self.epoch
        if not fresh and (delta.epoch, delta.base) != (self.epoch, self.number):
            return None
        inventories = {} if fresh else dict(self.inventories)
        for change in delta.changes:
            if change.inventory is None:
                inventories.pop(change.node, None)
            else:
                inventories[change.node] = change.inventory
        return Table(delta.epoch, delta.number, inventories)

    def without(self, node: NodeId) -> Table:
        """It is dead: its entry goes until the leader tells of it again."""
        if node not in self.inventories:
            return self
        return replace(self, inventories={key: each for key, each in self.inventories.items() if key != node})

    def without_model(self, node: NodeId, digest: Digest) -> Table:
        """``node`` said that it has not what the table says: nothing of ``digest`` until it reports again."""
        known = self.inventories.get(node)
        if known is None:
            return self
        left = replace(
            known,
            replicas=tuple(fact for fact in known.replicas if fact.digest != digest),
            checkpoints=tuple(fact for fact in known.checkpoints if fact.digest != digest),
        )
        return replace(self, inventories={**self.inventories, node: left})

    def holders(self, digest: Digest, *, files_only: bool = False) -> list[NodeId]:
        """Nodes that have all bytes of a checkpoint, memory first; ``files_only``: or only its files."""
        order = ("dram", "ssd", "files") if files_only else ("dram", "ssd")
        found = [
            (order.index(fact.tier), node)
            for node, inventory in self.inventories.items()
            for fact in inventory.checkpoints
            if fact.digest == digest and fact.tier in order
        ]
        return [node for _, node in sorted(found)]

    def checkpoint(self, digest: Digest) -> CheckpointFact | None:
        """What the nodes tell of a checkpoint."""
        facts = (fact for each in self.inventories.values() for fact in each.checkpoints)
        return next((fact for fact in facts if fact.digest == digest), None)

    def states(self, model: ModelName, digest: Digest, *, besides: NodeId) -> list[str]:
        """In which states its replicas are, over all nodes but one: that one knows better itself."""
        others = (each for node, each in self.inventories.items() if node != besides)
        replicas = (fact for each in others for fact in each.replicas)
        return [fact.state for fact in replicas if (fact.model, fact.digest) == (model, digest)]


def gone(before: Table, after: Table) -> dict[Digest, NodeId]:
    """The checkpoints of nodes that the table has no more, and one of those nodes for each."""
    nodes = before.inventories.keys() - after.inventories.keys()
    return {fact.digest: node for node in nodes for fact in before.inventories[node].checkpoints}


class Ledger:
    """The leader's books: every node's inventory, and when each changed."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.number = 1
        """Starts at one, so that an empty table of this epoch is a version of it."""
        self._known: dict[NodeId, Versioned] = {}
        self._changed: dict[NodeId, int] = {}
        """The number at which a node's inventory changed, also for nodes that are gone."""
        self._busier: set[NodeId] = set()
        """Nodes of which only how busy they are has changed since it was last told."""

    def take(self, node: NodeId, report: Report) -> bool:
        """Merge a report; False: a full one is needed."""
        known = self._known.get(node)
        merged = merge(known, report)
        if merged is None:
            return False
        self._known[node] = merged
        if known is None or is_urgent(known.inventory, merged.inventory):
            self._touch(node)
        elif known.inventory.told() != merged.inventory.told():
            self._busier.add(node)
        return True

    def inventory(self, node: NodeId) -> Inventory:
        """A node's, with what only the leader is told."""
        return self._known[node].inventory

    def settle(self) -> None:
        """Tell how busy nodes are, too."""
        for node in list(self._busier):
            self._touch(node)

    def forget(self, node: NodeId) -> None:
        """It is dead or left."""
        if self._known.pop(node, None) is not None:
            self._touch(node)

    def _touch(self, node: NodeId) -> None:
        self.number += 1
        self._busier.discard(node)
        self._changed[node] = self.number

    def since(self, epoch: int, number: int) -> Delta:
        """What a table of this version lacks."""
        base = number if epoch == self.epoch and 0 < number <= self.number else 0
        changes = tuple(
            Change(node, self._known[node].inventory.told() if node in self._known else None)
            for node, changed in self._changed.items()
            if changed > base and (base or node in self._known)
        )
        return Delta(self.epoch, base, self.number, changes)
