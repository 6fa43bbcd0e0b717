"""What to lift one tier up before anybody asks, on paths that idle. Pure.

Memory that lies empty helps nobody: where there is room, models are lifted in the order of what that is
expected to save, and those of which nothing is known yet after them. In the place of another copy only
what is likely to be used soon, and worth more. Prefetched copies are copies like any other: the first to
go when their chance of use has passed. A load that somebody waits for interrupts a lift, so lifts are in
nobody's way.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass

from sllmd.core.ids import ModelName, NodeId
from sllmd.scheduler.decisions import Source
from sllmd.scheduler.eviction import NoRoom, choose, copies_of, worth_seconds
from sllmd.scheduler.facts import Tier
from sllmd.scheduler.view import ClusterView, ModelView, NodeView

_CANDIDATES_MAX = 1024
"""Models of a node's SSD that are looked at in one go."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Lift ``model`` from SSD into DRAM of ``node``; ``evict`` make room."""

    node: NodeId
    model: ModelName
    source: Source
    chance: float
    saves_seconds: float
    """Expected, what is lost by evictions taken off."""
    evict: tuple[ModelName, ...]


def prefetch(view: ClusterView, node: NodeView, now: float, *, chance_min: float = 0.0) -> Prefetch | None:
    """The one lift on this node that is expected to save most.

    ``chance_min``: into memory that lies empty, only models whose chance of use is no less.

    None: nothing is worth it, or a path is busy.
    """
    if node.draining or not node.trusted or max(node.ssd_path.until, node.in_path.until) > now:
        return None
    best: Prefetch | None = None
    best_rank: tuple[float, int, int] | None = None
    for name in itertools.islice(node.ssd, _CANDIDATES_MAX):
        known = view.models.get(name)
        if known is None or name in node.dram or not _may_lift(node, known):
            continue
        found = _lift(view, node, known, now, chance_min)
        if found is None:
            continue
        # Of models that promise alike, nodes take different ones, those that nobody has in DRAM first.
        rank = (-found.saves_seconds, len(known.dram_holders), zlib.crc32(f"{node.node} {name}".encode()))
        if best_rank is None or rank < best_rank:
            best, best_rank = found, rank
    return best


def _may_lift(node: NodeView, known: ModelView) -> bool:
    rules = known.model.rules
    allowed = (not rules.labels and not rules.nodes) or rules.allow(node.name, node.labels)
    return allowed and not any(replica.node == node.node for replica in known.replicas.values())


def _lift(
    view: ClusterView, node: NodeView, known: ModelView, now: float, chance_min: float
) -> Prefetch | None:
    settings = view.settings
    name = known.model.name
    missing = known.model.total_bytes - (node.dram_bytes - node.dram_used_bytes)
    chance = known.arrivals.chance(now, settings.use_horizon)
    gain = worth_seconds(view, node, known, Tier.DRAM, now)
    if missing <= 0 and chance >= chance_min:
        return Prefetch(node.node, name, Source(Tier.SSD), chance, gain, ())
    if missing <= 0 or chance < settings.prefetch_chance_min:
        return None
    copies = copies_of(view, node, Tier.DRAM, now)
    going = choose(copies, missing)
    if isinstance(going, NoRoom):
        return None
    gain -= sum(copy.worth_seconds for copy in copies if copy.model in going)
    return Prefetch(node.node, name, Source(Tier.SSD), chance, gain, going) if gain > 0 else None
