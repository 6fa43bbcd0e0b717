"""What reports teach: loads that ended or run late, generations that went on. Pure."""

from __future__ import annotations

from sllmd.scheduler import reports
from sllmd.scheduler.books import Contradiction, path_late, path_leave
from sllmd.scheduler.decisions import Source
from sllmd.scheduler.facts import Tier
from sllmd.scheduler.learning import Learned, Line
from sllmd.scheduler.view import ClusterView, LoadView, NodeView, ReplicaState, ReplicaView

_LATE = 0.85
"""A running load that is slower than this share of the estimate lowers it; anything above may be noise."""
_EVIDENCE_SECONDS = 0.2
"""A load that runs for less has shown nothing yet."""
_PAIRS_MAX = 64
"""Single peers whose bandwidth a node remembers."""


def tokens_seen(replica: ReplicaView, change: reports.GenerationTokens, now: float) -> None:
    """A generation has come so far. One that is not known here is a contradiction."""
    generation = replica.generations.get(change.generation)
    if generation is None:
        raise Contradiction
    generation.tokens_out = max(generation.tokens_out, change.tokens_out)
    generation.heard_seconds = now


def generation_ended(
    view: ClusterView, node: NodeView, replica: ReplicaView, change: reports.GenerationEnded, now: float
) -> None:
    """A row is free; from one that finished here, its pace and length are learned."""
    generation = replica.generations.pop(change.generation, None)
    if generation is None:
        raise Contradiction
    replica.used_seconds = now
    node.running -= 1
    known = view.models.get(replica.model.name)
    seconds = now - generation.began_seconds
    produced = change.tokens_out - generation.tokens_out
    if known is None or change.tokens_out <= 0 or seconds <= 0:
        return
    if produced > 0:
        known.token_seconds.observe(seconds / change.tokens_out)
    known.generation_seconds.observe(seconds)


def prefilled(view: ClusterView, node: NodeView, change: reports.Prefilled) -> None:
    """What recomputing costs: of the model on this node, and of the model anywhere."""
    known = view.models.get(change.model)
    if known is None:
        return
    line = known.recompute_at.get(node.node)
    if line is None:
        line = known.recompute_at[node.node] = Line(known.recompute.a, known.recompute.b)
    line.observe(change.tokens, change.seconds)
    known.recompute.observe(change.tokens, change.seconds)


def rate_of(node: NodeView, source: Source, *, pair: bool = False) -> Learned:
    """The hop that bounds a load from ``source``; ``pair``: of this very peer, made if not there yet."""
    if source.tier is Tier.DRAM:
        return node.to_device
    if source.tier is Tier.SSD:
        return node.from_ssd
    if source.tier is Tier.REMOTE:
        return node.from_remote
    if source.peer is None or (not pair and source.peer not in node.pairs):
        return node.from_peer
    if source.peer not in node.pairs:
        while len(node.pairs) >= _PAIRS_MAX:
            del node.pairs[next(iter(node.pairs))]
        node.pairs[source.peer] = Learned(node.from_peer.value, node.from_peer.most)
    return node.pairs[source.peer]


def _hop_bytes(replica: ReplicaView, tier: Tier) -> int:
    return replica.model.part_bytes if tier is Tier.DRAM else replica.model.total_bytes


def load_progress(node: NodeView, replica: ReplicaView, change: reports.LoadProgress, now: float) -> None:
    """A load runs: if it is late, later loads are estimated so at once, and those behind it move."""
    load = replica.load
    if load is None:
        raise Contradiction
    total = replica.model.total_bytes
    if change.seconds < _EVIDENCE_SECONDS or not 0 <= change.loaded_bytes <= total:
        return
    share = change.loaded_bytes / total
    rate = rate_of(node, load.source)
    pace = share * _hop_bytes(replica, load.source.tier) / change.seconds
    left = (1 - share) / share * change.seconds if share > 0 else change.seconds
    if pace < rate.value * _LATE:
        rate.at_most(max(pace, 1.0))
    _expect(replica, load, now + left + node.start.value)


def _expect(replica: ReplicaView, load: LoadView, end_seconds: float) -> None:
    late = end_seconds - load.end_seconds
    load.end_seconds = end_seconds
    for path in load.paths:
        path_late(path, replica.replica, late)


def load_ended(
    view: ClusterView, node: NodeView, replica: ReplicaView, change: reports.LoadEnded, now: float
) -> None:
    """A replica is ready: its hop's bandwidth is learned, the estimate is held against what it took."""
    load = replica.load
    if load is None or replica.state is ReplicaState.ASLEEP:
        raise Contradiction
    view.errors[load.source.tier].record(load.estimate_seconds, change.bytes_seconds + change.start_seconds)
    if change.bytes_seconds > 0:
        seen = _hop_bytes(replica, load.source.tier) / change.bytes_seconds
        rate_of(node, load.source, pair=True).observe(seen)
        if load.source.tier is Tier.PEER:
            node.from_peer.observe(seen)
    (node.wake if load.wakes else node.start).observe(change.start_seconds)
    for path in load.paths:
        path_leave(path, replica.replica)
    replica.load = None
    if replica.state is not ReplicaState.CLOSING:
        replica.state = ReplicaState.READY
    replica.since_seconds = replica.used_seconds = now
