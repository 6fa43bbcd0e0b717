"""Where to run a generation, the best place first. Pure.

The order, numbered as at the branches:

1. a replica that serves and has a row free: this node's, else the least loaded. What this node has run
   there counts, though its inventory does not tell of it yet; of several alike, each node begins with
   another one;
2. a replica that starts;
3. while the model may have more replicas: a node with a device free that has the checkpoint, in memory
   before on disk;
4. the same without the checkpoint: it fetches it from others;
5. a replica whose rows are all taken: the shortest queue;
6. a node that has to make room first, one that has the checkpoint before others.

Nodes that drain, and those that are not well, are not asked.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.inventory import Inventory, ReplicaFact

_TIERS = {"dram": 0, "ssd": 1}
_NO_TIER = 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model to run something on."""

    model: ModelName
    digest: Digest
    replicas_max: int
    """How many of it there may be in the cluster."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place, and the rule that put it there."""

    node: NodeId
    rule: int


def choose(
    inventories: Mapping[NodeId, Inventory],
    wanted: Wanted,
    *,
    me: NodeId,
    well: Collection[NodeId],
    mine: Mapping[NodeId, int],
) -> tuple[Candidate, ...]:
    """Every node that may be asked, in order; numbers as in the module's docstring.

    ``mine``: generations of the model that this node has under way there.
    """
    usable = {node: each for node, each in inventories.items() if node in well and not each.draining}
    replicas = sum(_replica(each, wanted) is not None for each in usable.values())
    may_start = replicas < wanted.replicas_max
    ranked = [
        rank
        for node, each in usable.items()
        for rank in _rank(node, each, wanted, may_start, me, mine.get(node, 0))
    ]
    return tuple(Candidate(node, rule) for rule, _pressure, _away, _turn, node in sorted(ranked))


def _rank(
    node: NodeId, inventory: Inventory, wanted: Wanted, may_start: bool, me: NodeId, mine: int
) -> Iterator[tuple[int, tuple[float, ...], bool, int, NodeId]]:
    away, turn = node != me, zlib.crc32(f"{me} {node}".encode())
    replica = _replica(inventory, wanted)
    if replica is not None:
        pressure = max(replica.running + replica.waiting, mine) / replica.rows_max
        if replica.state == "serving" and max(replica.running, mine) < replica.rows_max:  # 1
            yield 1, (float(away), pressure), away, turn, node
        elif replica.state == "starting":  # 2
            yield 2, (pressure,), away, turn, node
        else:  # 5
            yield 5, (pressure,), away, turn, node
        return
    tier = min((_TIERS.get(f.tier, _NO_TIER) for f in inventory.checkpoints if f.digest == wanted.digest),
               default=_NO_TIER)  # fmt: skip
    busy = float(sum(fact.running + fact.waiting for fact in inventory.replicas))
    if not may_start or not inventory.devices:
        yield 6, (1.0, float(tier), busy), away, turn, node
    elif not _has_device(inventory):  # 6
        yield 6, (0.0, float(tier), busy), away, turn, node
    elif tier < _NO_TIER:  # 3
        yield 3, (float(tier), float(away), busy), away, turn, node
    else:  # 4
        yield 4, (busy,), away, turn, node


def _replica(inventory: Inventory, wanted: Wanted) -> ReplicaFact | None:
    """Its replica of the model, unless it is on its way out."""
    for fact in inventory.replicas:
        if (fact.model, fact.digest) == (wanted.model, wanted.digest) and fact.state in (
            "serving",
            "starting",
        ):
            return fact
    return None


def _has_device(inventory: Inventory) -> bool:
    """A place on a device, or a replica there that only rests."""
    if any(device.replicas < device.replicas_max for device in inventory.devices):
        return True
    return any(fact.state == "serving" and not fact.running + fact.waiting for fact in inventory.replicas)
