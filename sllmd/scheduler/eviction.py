"""What leaves a tier to make room: cost of bringing it back x chance of use, per byte. Pure.

The same function serves DRAM and SSD: only the cost of coming back differs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sllmd.core.ids import ModelName
from sllmd.scheduler.estimate import peers
from sllmd.scheduler.facts import Model, Tier
from sllmd.scheduler.view import ClusterView, ModelView, NodeView, ReplicaState


@dataclass(frozen=True, slots=True)
class Copy:
    """A model in a tier."""

    model: ModelName
    size_bytes: int
    held: bool
    """A replica, a load or a person keeps it here."""
    worth_seconds: float
    """Seconds that its going is expected to cost."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    """All copies that may go make too little room; none should."""

    missing_bytes: int


def choose(copies: Iterable[Copy], needed_bytes: int) -> tuple[ModelName, ...] | NoRoom:
    """The copies whose going frees ``needed_bytes`` at the least expected cost.

    1. Nothing is needed: nobody goes.
    2. What may go is not enough: nobody goes either.
    3. Else those worth least per byte go, and those that turn out not to be needed, stay.
    """
    if needed_bytes <= 0:
        return ()
    free = [copy for copy in copies if not copy.held and copy.size_bytes > 0]
    available = sum(copy.size_bytes for copy in free)
    if available < needed_bytes:
        return NoRoom(needed_bytes - available)
    free.sort(key=lambda copy: (copy.worth_seconds / copy.size_bytes, copy.model))
    going: list[Copy] = []
    freed = 0
    for copy in free:
        if freed >= needed_bytes:
            break
        going.append(copy)
        freed += copy.size_bytes
    for copy in sorted(going, key=lambda copy: -copy.worth_seconds):
        if freed - copy.size_bytes >= needed_bytes:
            going.remove(copy)
            freed -= copy.size_bytes
    return tuple(copy.model for copy in going)


def worth_seconds(view: ClusterView, node: NodeView, known: ModelView, tier: Tier, now: float) -> float:
    """What losing a copy is expected to cost: the longer load from the next source, times the chance that the
    model is asked for within the horizon."""
    chance = known.arrivals.chance(now, view.settings.use_horizon)
    return chance * max(_without(view, node, known, tier, now) - _with(node, known.model, tier), 0.0)


def _with(node: NodeView, model: Model, tier: Tier) -> float:
    to_device = model.part_bytes / node.to_device.value
    return to_device if tier is Tier.DRAM else max(to_device, model.total_bytes / node.from_ssd.value)


def _without(view: ClusterView, node: NodeView, known: ModelView, tier: Tier, now: float) -> float:
    """The load from where it would come then. One that no other source has is kept at almost any price."""
    model = known.model
    rates: list[float] = []
    if tier is Tier.DRAM and model.name in node.ssd:
        rates.append(node.from_ssd.value)
    if model.remote:
        rates.append(node.from_remote.value)
    others = (peer for peer in peers(view, known, now) if peer.node is not node)
    rates.extend(min(node.from_peer.value, peer.bytes_per_second) for peer in others)
    return model.total_bytes / max(rates) if rates else 1e9


def copies_of(view: ClusterView, node: NodeView, tier: Tier, now: float) -> list[Copy]:
    """The copies in a tier of a node, as ``choose`` wants them. In DRAM those are held that a replica on the
    node maps or a load reads, unless it sleeps: then it goes with its copy. A model that is no longer
    deployed is worth nothing."""
    replicas = node.replicas.values()
    held = {each.model.name for each in replicas if each.state is not ReplicaState.ASLEEP}
    found = []
    for name, size in (node.dram if tier is Tier.DRAM else node.ssd).items():
        known = view.models.get(name)
        worth = worth_seconds(view, node, known, tier, now) if known is not None else 0.0
        found.append(Copy(name, size, name in held, worth))
    return found
