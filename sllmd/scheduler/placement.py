"""How a request gets a replica soonest: the paper's section 6, over every tier. Pure.

``place`` decides, in this order:

0. a model that is not deployed, or that no node could hold even empty, is refused with what is missing;
1. a ready replica with a free row is used;
2. every way to a replica is estimated: a row that frees up, a load that is under way, and for each node
waking
   a sleeping replica, loading onto free devices, or making room first;
3. the smallest score (startup plus weighted harm to others) is taken; waiting is a way like any other.

Nodes are looked at once, cheaply; only those whose estimate without any queue for a device or victim is below
the best one found get the expensive look, quickest first. So the time grows with the nodes, not with what
runs on them, and leaving a node out is never a guess: its best case has lost already.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sllmd.core.ids import NodeId, ReplicaId
from sllmd.core.units import format_bytes
from sllmd.scheduler.decisions import (
    Candidate,
    Decision,
    Load,
    Placement,
    Refuse,
    Source,
    Use,
    Victim,
    Wait,
    Way,
)
from sllmd.scheduler.estimate import Fetch, peers, queue_seconds, quickest, row_seconds
from sllmd.scheduler.facts import Model, Request
from sllmd.scheduler.room import choose_devices, has_room
from sllmd.scheduler.victims import Clearing, Search
from sllmd.scheduler.view import ClusterView, ModelView, NodeView, ReplicaState, ReplicaView

_SLOWER = "slower than the best"
_SLOWER_EMPTY = "slower than the best, even with its devices free"
_NO_VICTIMS = "nobody on its devices can go for less"
_UNSEARCHED = "not looked at: the search is bounded"
CHOSEN = "chosen"


class _Seen(NamedTuple):
    """A node after the cheap look."""

    startup_seconds: float
    running: int
    order: int
    node: NodeView
    fetch: Fetch
    start_seconds: float


@dataclass(slots=True)
class _Survey:
    """All nodes after the cheap look."""

    free: list[_Seen] = field(default_factory=list)
    full: list[_Seen] = field(default_factory=list)
    out: list[Candidate] = field(default_factory=list)
    roomy: list[NodeView] = field(default_factory=list)
    reachable: bool = False
    """Whether some node would hold it when empty."""


def place(
    view: ClusterView,
    request: Request,
    now: float,
    *,
    ahead: int = 0,
    only: Collection[NodeId] | None = None,
    without: Collection[NodeId] = (),
    searching: Callable[[ClusterView, float, int, Sequence[NodeView]], Search] = Search,
) -> Placement:
    """What to do for ``request``, with ``ahead`` others before it in its model's line.

    ``only``: load on no other nodes; ``without``: nor use the replicas of these. ``searching`` looks for
    victims.
    """
    known = view.models.get(request.model)
    if known is None:  # 0
        return Placement(request.model, Refuse(f"`{request.model}` is not deployed"), (), view.version)
    ready = _ready(view, known, ahead, without)
    if ready is not None:  # 1
        candidate = Candidate(Way.USE, ready.node, "", 0.0, 0.0, 0.0, 0.0, 0.0, CHOSEN)
        return Placement(request.model, Use(ready.replica, ready.node), (candidate,), view.version)
    survey = _survey(view, known, now, only)
    if not survey.reachable and only is None:  # 0
        decision = Refuse(_missing(view, known.model))
        return Placement(request.model, decision, tuple(survey.out), view.version)
    comparison = _Comparison(view, known, now)
    comparison.wait_for_row(ahead, without)  # 2
    if _may_add(known):
        comparison.load_free(survey.free)
        priority = request.priority + known.model.rules.priority
        comparison.clear(survey.full, searching(view, now, priority, survey.roomy))
    return comparison.placement(survey)  # 3


def _ready(
    view: ClusterView, known: ModelView, ahead: int, without: Collection[NodeId]
) -> ReplicaView | None:
    """The fullest replica with a free row that those ahead leave: so the others fall idle and may go."""
    best = None
    for replica in known.replicas.values():
        if replica.state is not ReplicaState.READY or replica.node in without:
            continue
        rows = replica.free_rows
        node = view.nodes[replica.node]
        if rows <= 0 or node.draining or not node.trusted:
            continue
        if ahead >= rows:
            ahead -= rows
        elif best is None or rows < best.free_rows:
            best = replica
    return best


def _survey(view: ClusterView, known: ModelView, now: float, only: Collection[NodeId] | None) -> _Survey:
    """The cheap look at every node."""
    survey = _Survey()
    model = known.model
    rules = model.rules
    ruled = bool(rules.labels or rules.nodes)
    near = peers(view, known, now)
    stale_before = view.heard_seconds - view.settings.stale_after
    asleep = {r.node for r in known.replicas.values() if r.state is ReplicaState.ASLEEP}
    for order, node in enumerate(view.nodes.values()):
        if only is not None and node.node not in only:
            continue
        if not has_room(node.capacities, model):
            survey.out.append(_excluded(node, "its devices are too small or too few"))
            continue
        if ruled and not rules.allow(node.name, node.labels):
            survey.out.append(_excluded(node, "the placement rules forbid it"))
            continue
        fetch = quickest(node, model, near, now)
        if fetch is None:
            survey.out.append(_excluded(node, "no source has the model"))
            continue
        survey.reachable = True
        if node.draining or not node.trusted or node.heard_seconds < stale_before:
            survey.out.append(_excluded(node, _unavailable(node)))
            continue
        free = node.free
        if free and free[0] > 0:
            survey.roomy.append(node)
        start = (node.wake if node.node in asleep else node.start).value
        seen = _Seen(
            fetch.queue_seconds + fetch.load_seconds + start, node.running, order, node, fetch, start
        )
        (survey.free if has_room(free, model) else survey.full).append(seen)
    survey.free.sort()
    survey.full.sort()
    survey.roomy.sort(key=lambda node: -node.free[0])
    return survey


def _unavailable(node: NodeView) -> str:
    if node.draining:
        return "it is draining"
    return "it has not been heard of lately" if node.trusted else "its reports contradict each other"


def _excluded(node: NodeView, why: str) -> Candidate:
    return Candidate(Way.NONE, node.node, "", 0.0, 0.0, 0.0, math.inf, math.inf, why)


def _may_add(known: ModelView) -> bool:
    asleep = sum(replica.state is ReplicaState.ASLEEP for replica in known.replicas.values())
    return len(known.replicas) - asleep < known.model.rules.max_replicas


@dataclass(slots=True)
class _Comparison:
    """The best way so far, and those that lost."""

    view: ClusterView
    known: ModelView
    now: float
    decision: Decision | None = None
    best: Candidate | None = None
    lost: list[Candidate] = field(default_factory=list)

    @property
    def score(self) -> float:
        return self.best.score if self.best is not None else math.inf

    def offer(self, decision: Decision | None, candidate: Candidate) -> None:
        """A way that was estimated; the loser of the two goes to the others."""
        if self.best is not None and candidate.score >= self.best.score:
            self.lost.append(candidate)
            return
        if self.best is not None:
            self.lost.append(self.best._replace(why=_SLOWER))
        self.decision, self.best = decision, candidate

    def wait_for_row(self, ahead: int, without: Collection[NodeId]) -> None:
        """A replica of the model that is busy or on its way."""
        seconds, replica = row_seconds(self.view, self.known, ahead, self.now, without)
        if replica is None:
            return
        loading = replica.load is not None
        way = Way.WAIT_LOAD if loading else Way.WAIT_ROW
        reason = "the model is loading" if loading else "all rows of the model are taken"
        candidate = Candidate(way, replica.node, "", seconds, 0.0, 0.0, seconds, seconds, _SLOWER)
        self.offer(Wait(reason, seconds), candidate)

    def load_free(self, free: Sequence[_Seen]) -> None:
        """Nodes with free devices, the quickest first; their links' queues are counted now."""
        for seen in free:
            if seen.startup_seconds >= self.score:
                self.lost.append(_summary(Way.LOAD, seen, _SLOWER))
                continue
            devices = choose_devices(seen.node, self.known.model)
            assert devices is not None
            links = max(queue_seconds(seen.node.devices[index].link, self.now) for index in devices)
            queue = max(seen.fetch.queue_seconds, links)
            startup = queue + seen.fetch.load_seconds + seen.start_seconds
            load = self._load(seen, devices, startup, ())
            way = Way.LOAD if load.wakes is None else Way.WAKE
            self.offer(load, _candidate(way, seen, queue, 0.0, startup, startup))

    def clear(self, full: Sequence[_Seen], search: Search) -> None:
        """Full nodes, the quickest first: who would have to go there?"""
        for place, seen in enumerate(full):
            if seen.startup_seconds >= self.score:
                self.lost.extend(_summary(Way.CLEAR, each, _SLOWER_EMPTY) for each in full[place:])
                return
            if place >= self.view.settings.search_nodes_max:
                self.lost.extend(_unknown(each, _UNSEARCHED) for each in full[place:])
                return
            clearing = search.clear(seen.node, self.known.model, self.score - seen.startup_seconds)
            if clearing is None:
                self.lost.append(_unknown(seen, _NO_VICTIMS))
            else:
                self._cleared(seen, clearing)

    def _cleared(self, seen: _Seen, clearing: Clearing) -> None:
        queue = max(seen.fetch.queue_seconds, clearing.free_seconds)
        startup = queue + seen.fetch.load_seconds + seen.start_seconds
        score = startup + clearing.harm_seconds * self.view.settings.harm_weight
        decision: Decision
        if clearing.ending is not None:
            way = Way.WAIT_ROOM
            decision = Wait("another model finishes its running requests first", startup, clearing.ending)
        else:
            way = Way.CLEAR
            decision = self._load(seen, clearing.devices, startup, clearing.victims)
        queued = seen.fetch.queue_seconds
        self.offer(decision, _candidate(way, seen, queued, clearing.free_seconds, startup, score))

    def _load(
        self, seen: _Seen, devices: tuple[int, ...], startup_seconds: float, victims: tuple[Victim, ...]
    ) -> Load:
        return Load(
            node=seen.node.node,
            devices=devices,
            source=seen.fetch.source,
            startup_seconds=startup_seconds,
            bytes_seconds=seen.fetch.load_seconds,
            victims=victims,
            wakes=asleep_on(self.known, seen.node),
        )

    def placement(self, survey: _Survey) -> Placement:
        """What was chosen, the others after it, best first."""
        self.lost.sort(key=_score)
        chosen = () if self.best is None else (self.best._replace(why=CHOSEN),)
        decision = self.decision or Wait("every node or replica that the rules allow is taken", math.inf)
        name = self.known.model.name
        return Placement(name, decision, (*chosen, *self.lost, *survey.out), self.view.version)


_score = operator.attrgetter("score")


def asleep_on(known: ModelView, node: NodeView) -> ReplicaId | None:
    """The model's replica that sleeps there."""
    for replica in known.replicas.values():
        if replica.node == node.node and replica.state is ReplicaState.ASLEEP:
            return replica.replica
    return None


def _candidate(way: Way, seen: _Seen, queue: float, free: float, startup: float, score: float) -> Candidate:
    """A way that was looked at closely; it says "slower" until it is chosen."""
    source, seconds = _source_name(seen.fetch.source), seen.fetch.load_seconds
    return Candidate(way, seen.node.node, source, queue, seconds, free, startup, score, _SLOWER)


def _summary(way: Way, seen: _Seen, why: str) -> Candidate:
    startup = seen.startup_seconds
    fetch = seen.fetch
    return Candidate(
        way,
        seen.node.node,
        _source_name(fetch.source),
        fetch.queue_seconds,
        fetch.load_seconds,
        0.0,
        startup,
        startup,
        why,
    )


def _unknown(seen: _Seen, why: str) -> Candidate:
    """A node whose devices cannot be had, or for how much was not found out."""
    return _summary(Way.CLEAR, seen, why)._replace(startup_seconds=math.inf, score=math.inf)


def _source_name(source: Source) -> str:
    return source.tier if source.peer is None else f"peer {source.peer}"


def _missing(view: ClusterView, model: Model) -> str:
    """The resource for whose want no node can ever hold the model."""
    if not view.nodes:
        return "there is no node"
    rules = model.rules
    allowed = [node for node in view.nodes.values() if rules.allow(node.name, node.labels)]
    if not allowed:
        return "no node has the name and the labels that the placement rules ask for"
    if all(len(node.devices) < model.devices for node in allowed):
        most = max(len(node.devices) for node in allowed)
        return (
            f"the model is spread over {model.devices} devices and no node that may have it has over {most}"
        )
    if not any(has_room(node.capacities, model) for node in allowed):
        most = max((node.capacities[0] for node in allowed if node.capacities), default=0)
        return (
            f"the model needs {format_bytes(max(model.device_bytes))} on each of {model.devices} device(s)"
            f" and the largest device offers {format_bytes(most)}"
        )
    return "no node holds the model and there is no remote source"
