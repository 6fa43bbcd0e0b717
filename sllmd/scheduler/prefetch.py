"""What to lift one tier up before anybody asks, on paths that idle. Pure.

Prefetched copies are copies like any other: the first to go when their chance of use has passed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.core.ids import ModelName, NodeId
from sllmd.scheduler.decisions import Source
from sllmd.scheduler.estimate import load_seconds
from sllmd.scheduler.eviction import NoRoom, choose, copies_of, worth_seconds
from sllmd.scheduler.facts import Tier
from sllmd.scheduler.view import ClusterView, ModelView, NodeView


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Lift ``model`` from SSD into DRAM of ``node``; ``evict`` make room."""

    node: NodeId
    model: ModelName
    source: Source
    chance: float
    saves_seconds: float
    evict: tuple[ModelName, ...]


def prefetch(view: ClusterView, node: NodeView, now: float) -> Prefetch | None:
    """The one lift on this node that is expected to save most; None: nothing is worth it, or a path is busy.

    Only what is likely enough to be used, only onto an idle path, and never in the place of copies that are
    together worth more: otherwise two hot models would throw each other out in turns.
    """
    if node.draining or not node.trusted or max(node.ssd_path.until, node.in_path.until) > now:
        return None
    best: Prefetch | None = None
    for name in node.ssd:
        known = view.models.get(name)
        if known is None or name in node.dram or not _likely(view, known, now):
            continue
        found = _lift(view, node, known, now)
        if found is not None and (best is None or found.saves_seconds > best.saves_seconds):
            best = found
    return best


def _likely(view: ClusterView, known: ModelView, now: float) -> bool:
    settings = view.settings
    return known.arrivals.chance(now, settings.use_horizon) >= settings.prefetch_chance_min


def _lift(view: ClusterView, node: NodeView, known: ModelView, now: float) -> Prefetch | None:
    model = known.model
    if any(replica.node == node.node for replica in known.replicas.values()):
        return None
    copies = copies_of(view, node, Tier.DRAM, now)
    missing = model.total_bytes - (node.dram_bytes - node.dram_used_bytes)
    going = choose(copies, missing)
    if isinstance(going, NoRoom):
        return None
    lost = sum(copy.worth_seconds for copy in copies if copy.model in going)
    gain = worth_seconds(view, node, known, Tier.DRAM, now) - lost
    if gain <= 0:
        return None
    chance = known.arrivals.chance(now, view.settings.use_horizon)
    source = Source(Tier.SSD)
    saved = load_seconds(view, node, model, source) - load_seconds(view, node, model, Source(Tier.DRAM))
    return Prefetch(node.node, model.name, source, chance, min(gain, saved * chance), going)
