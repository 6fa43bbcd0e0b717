"""The two formulas. Pure.

Loading (section 6): ``q + n / b``: until the path is free, then the missing bytes over the slowest hop that
they need. A load occupies every path that it goes through, so a link that two loads share is counted by
making the second one wait. Migration: ``a (t_in + t_out) + b``, plus the load at the target if the model
is not there.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from sllmd.core.ids import ModelName, NodeId
from sllmd.scheduler.decisions import Source
from sllmd.scheduler.facts import Model, Tier
from sllmd.scheduler.view import ClusterView, GenerationView, ModelView, NodeView, Path, ReplicaView

_AGAIN = 0.25
"""Share of its age and of the mean that a generation which has outrun the mean is expected to go on: lengths
have long tails, so the longer it runs, the longer it will, and who waits for it stops hoping."""
_STALLED_SECONDS = 5.0
"""A load that is late by less is only late: what delays it, a first start, say, would delay another one, too.
One that is later is expected to take as long again as it is late."""
_DRAM, _SSD, _REMOTE = Source(Tier.DRAM), Source(Tier.SSD), Source(Tier.REMOTE)


class Fetch(NamedTuple):
    """A source and what it would take from now."""

    source: Source
    queue_seconds: float
    load_seconds: float


class Peer(NamedTuple):
    """A node that may serve a model to others."""

    node: NodeView
    source: Source
    queue_seconds: float
    bytes_per_second: float
    """What it can give: infinite from DRAM, where only the network bounds it."""


def queue_seconds(path: Path, now: float) -> float:
    """``q``: how long what was promised on ``path`` still takes."""
    return max(path.until - now, 0.0)


def load_seconds(view: ClusterView, node: NodeView, model: Model, source: Source) -> float:
    """``n / b`` of a load from ``source`` to devices of ``node``."""
    to_device = model.part_bytes / node.to_device.value
    if source.tier is Tier.DRAM:
        return to_device
    return max(to_device, model.total_bytes / _bytes_per_second(view, node, model.name, source))


def _bytes_per_second(view: ClusterView, node: NodeView, model: ModelName, source: Source) -> float:
    if source.tier is Tier.SSD:
        return node.from_ssd.value
    if source.tier is Tier.REMOTE:
        return node.from_remote.value
    peer = view.nodes.get(source.peer) if source.peer is not None else None
    rate = node.pairs.get(source.peer, node.from_peer).value if source.peer is not None else 0.0
    if peer is not None and model not in peer.dram:
        rate = min(rate, peer.from_ssd.value)
    return rate or node.from_peer.value


def peers(view: ClusterView, known: ModelView, now: float) -> list[Peer]:
    """The best few nodes to fetch a model from: DRAM before SSD, then the shortest queue."""
    found: list[Peer] = []
    for holders, from_dram in ((known.dram_holders, True), (known.ssd_holders, False)):
        wanted = view.settings.peers_max - len(found)
        if wanted <= 0:
            break
        some = [node for node in holders.values() if node.trusted]
        if len(some) > 1:
            some = sorted(some, key=lambda node: node.out_path.until)[: wanted * 2]
        for node in some[:wanted]:
            if from_dram or known.model.name not in node.dram:
                rate = math.inf if from_dram else node.from_ssd.value
                source = Source(Tier.PEER, node.node)
                found.append(Peer(node, source, queue_seconds(node.out_path, now), rate))
    return found


def quickest(node: NodeView, model: Model, near: list[Peer], now: float) -> Fetch | None:
    """The source from which ``model`` would be on ``node`` first; None: nobody has it."""
    to_device = model.part_bytes / node.to_device.value
    if model.name in node.dram:
        return Fetch(_DRAM, 0.0, to_device)
    total = model.total_bytes
    best: Fetch | None = None
    least = math.inf
    if model.name in node.ssd:
        queue = max(node.ssd_path.until - now, 0.0)
        seconds = max(to_device, total / node.from_ssd.value)
        best, least = Fetch(_SSD, queue, seconds), queue + seconds
    arriving = max(node.in_path.until - now, 0.0)
    if model.remote:
        seconds = max(to_device, total / node.from_remote.value)
        if arriving + seconds < least:
            best, least = Fetch(_REMOTE, arriving, seconds), arriving + seconds
    for peer in near:
        if peer.node is node:
            continue
        rate = node.pairs.get(peer.node.node, node.from_peer).value
        queue = max(arriving, peer.queue_seconds)
        seconds = max(to_device, total / min(rate, peer.bytes_per_second))
        if queue + seconds < least:
            best, least = Fetch(peer.source, queue, seconds), queue + seconds
    return best


def tokens_out(known: ModelView, generation: GenerationView, now: float) -> float:
    """``t_out``: what was reported, and what has come since at the model's pace."""
    return generation.tokens_out + max(now - generation.heard_seconds, 0.0) / known.token_seconds.value


def recompute_seconds(known: ModelView, node: NodeView, tokens: float) -> float:
    """``a (t_in + t_out) + b`` on that node."""
    return known.recompute_at.get(node.node, known.recompute).seconds(tokens)


def rest_seconds(view: ClusterView, known: ModelView, generation: GenerationView, now: float) -> float:
    """How long a generation is expected to go on."""
    if view.rest_seconds is not None:
        return view.rest_seconds(generation, now)
    age = max(now - generation.began_seconds, 0.0)
    mean = known.generation_seconds.value
    return max(mean - age, (mean + age) * _AGAIN)


def replica_rest_seconds(view: ClusterView, known: ModelView, replica: ReplicaView, now: float) -> float:
    """Until the last generation of a replica is expected to end: the longest of many outlasts the mean by
    ``spread x sqrt(2 ln n)``."""
    generations = replica.generations.values()
    if not generations:
        return 0.0
    longest = max(rest_seconds(view, known, generation, now) for generation in generations)
    if view.rest_seconds is not None or len(generations) == 1:
        return longest
    return longest + known.generation_seconds.spread * math.sqrt(2 * math.log(len(generations)))


def row_seconds(
    view: ClusterView, known: ModelView, ahead: int, now: float, without: Collection[NodeId] = ()
) -> tuple[float, ReplicaView | None]:
    """When a row is free for who has ``ahead`` others before it, and whose; infinite without any replica.
    Those of the nodes ``without`` do not count.

    Rows free up when generations end and when loads do; after a round of all rows comes another one.
    """
    rows: list[tuple[float, ReplicaView]] = []
    for replica in known.replicas.values():
        if replica.node in without:
            continue
        rows.extend((seconds, replica) for seconds in _rows(view, known, replica, now))
    if not rows:
        return math.inf, None
    rows.sort(key=lambda row: row[0])
    rounds, place = divmod(ahead, len(rows))
    seconds, replica = rows[place]
    return seconds + rounds * known.generation_seconds.value, replica


def _rows(view: ClusterView, known: ModelView, replica: ReplicaView, now: float) -> list[float]:
    if replica.state in ("closing", "asleep") or not view.nodes[replica.node].trusted:
        return []
    begin = _begin_seconds(replica, now)
    free = [begin] * max(replica.free_rows, 0)
    return free + [rest_seconds(view, known, generation, now) for generation in replica.generations.values()]


def _begin_seconds(replica: ReplicaView, now: float) -> float:
    """Until it is loaded."""
    if replica.load is None:
        return 0.0
    left = replica.load.end_seconds - now
    return -left if left < -_STALLED_SECONDS else max(left, 0.0)
