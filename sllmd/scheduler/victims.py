"""Who leaves a node's devices so that a model fits: the cheapest set, by a bounded search. Pure.

A replica can make room in three ways: it is idle and goes; it is busy and its generations move to another
node (one hop: nobody is displaced for them in turn); it is busy and ends by itself. What each costs is the
time until its devices are free plus the harm to others; victims leave side by side, so a set takes as long
as its slowest and harms as much as all together.
"""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sllmd.core.ids import ModelName, NodeId, ReplicaId
from sllmd.scheduler.decisions import Evict, Move, Victim
from sllmd.scheduler.estimate import (
    Fetch,
    Peer,
    peers,
    queue_seconds,
    quickest,
    recompute_seconds,
    replica_rest_seconds,
    tokens_out,
)
from sllmd.scheduler.facts import Model
from sllmd.scheduler.room import choose_devices, has_room, may_take
from sllmd.scheduler.view import ClusterView, DeviceView, ModelView, NodeView, ReplicaState, ReplicaView

_ALTERNATIVES = 3
"""Targets kept per model, should two victims want the same devices."""
_PAUSE_TOKENS = 4.0
"""Tokens left to recompute in the last round of a migration, when the stream stands still."""


@dataclass(frozen=True, slots=True)
class Clearing:
    """A set of victims and what it costs."""

    victims: tuple[Victim, ...]
    devices: tuple[int, ...]
    """Where the model fits afterwards."""
    free_seconds: float
    harm_seconds: float
    ending: ReplicaId | None
    """Somebody whose end has to be awaited; then nothing is to be done yet."""


class _Target(NamedTuple):
    seconds: float
    node: NodeView
    replica: ReplicaView | None
    devices: tuple[int, ...]
    move: Move
    """Without what depends on the victim: seconds and pause are filled in."""


class Option(NamedTuple):
    """How one replica could go, and what that costs."""

    cost: float
    replica: ReplicaView
    free_seconds: float
    harm_seconds: float
    moves: tuple[Move, ...]
    """Best first; none: it is idle, or it ends by itself."""
    ends: bool


_cost = operator.attrgetter("cost")


@dataclass(slots=True)
class Search:
    """One decision's search; what it finds out of a model is kept for the other nodes."""

    view: ClusterView
    now: float
    priority: int
    roomy: Sequence[NodeView]
    """Nodes with some free memory that may take something new, most first."""
    sets_left: int = 0
    models_left: int = 0
    """Sets of victims that may yet be tried, and models for which nodes may yet be looked through."""
    _near: dict[ModelName, list[Peer]] = field(default_factory=dict)
    _targets: dict[ModelName, list[_Target]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sets_left = self.view.settings.victim_sets_max
        self.models_left = self.view.settings.moved_models_max

    def clear(self, node: NodeView, model: Model, most_seconds: float) -> Clearing | None:
        """The cheapest way to make room for ``model`` on ``node``.

        None: there is none, or none that costs less than ``most_seconds``.
        """
        options = [
            option
            for replica in node.replicas.values()
            if (option := self._option(node, replica, model)) is not None and option.cost < most_seconds
        ]
        options.sort(key=_cost)
        if model.devices == 1:
            return self._clear_one(node, model, options, most_seconds)
        return self._clear_several(node, model, options, most_seconds)

    def _clear_one(
        self, node: NodeView, model: Model, options: Sequence[Option], most_seconds: float
    ) -> Clearing | None:
        """One device: each is looked at by itself."""
        best, least = None, most_seconds
        need = model.device_bytes[0]
        for index, device in enumerate(node.devices):
            if device.capacity_bytes < need:
                continue
            here = [option for option in options if option.replica.replica in device.held]
            chosen = _on_device(device, here, need)
            clearing = self._cleared(chosen, (index,)) if chosen else None
            if clearing is not None and (cost := self._cost_of(clearing)) < least:
                best, least = clearing, cost
        return best

    def _clear_several(
        self, node: NodeView, model: Model, options: Sequence[Option], most_seconds: float
    ) -> Clearing | None:
        """Several devices at once: sets over all of them, as far as the decision's budget goes."""
        for chosen in _by_cost(options):
            if self.sets_left <= 0:
                return None
            self.sets_left -= 1
            devices = _fit(node, model, [option.replica for option in chosen])
            clearing = self._cleared(chosen, devices) if devices is not None else None
            if clearing is not None and self._cost_of(clearing) < most_seconds:
                return clearing
        return None

    def _cost_of(self, clearing: Clearing) -> float:
        return clearing.free_seconds + clearing.harm_seconds * self.view.settings.harm_weight

    def _cleared(self, chosen: Sequence[Option], devices: tuple[int, ...]) -> Clearing | None:
        victims: list[Victim] = []
        taken: set[tuple[NodeId, int]] = set()
        into: set[ReplicaId] = set()
        ending = None
        for option in chosen:
            if option.ends:
                ending = option.replica.replica
                continue
            if not option.moves:
                victims.append(Evict(option.replica.replica, option.replica.model.name))
                continue
            moves = (self._beside(move, option.replica.model, taken, into) for move in option.moves)
            move = next((move for move in moves if move is not None), None)
            if move is None:
                return None
            taken.update((move.target_node, index) for index in move.target_devices)
            if move.target_replica is not None:
                into.add(move.target_replica)
            victims.append(move)
        free = max((option.free_seconds for option in chosen), default=0.0)
        harm = sum(option.harm_seconds for option in chosen)
        return Clearing(tuple(victims), devices, free, harm, ending)

    def _beside(
        self, move: Move, model: Model, taken: set[tuple[NodeId, int]], into: set[ReplicaId]
    ) -> Move | None:
        """``move``, onto other devices of its target where others move to the same ones; None: no room."""
        if move.target_replica is not None:
            return None if move.target_replica in into else move
        node = self.view.nodes[move.target_node]
        blocked = {
            index: -device.capacity_bytes
            for index, device in enumerate(node.devices)
            if (node.node, index) in taken
        }
        if not blocked.keys() & set(move.target_devices):
            return move
        devices = choose_devices(node, model, blocked)
        return replace(move, target_devices=devices) if devices is not None else None

    def _option(self, node: NodeView, replica: ReplicaView, model: Model) -> Option | None:
        """The cheapest way for one replica to go; None: it stays."""
        if replica.state is ReplicaState.ASLEEP or replica.reserved_rows:
            return None
        known = self.view.models.get(replica.model.name)
        if known is None:
            known = ModelView(replica.model)
        if replica.state is ReplicaState.CLOSING:
            return self.closing(known, replica)
        if replica.state is not ReplicaState.READY or replica.model.name == model.name:
            return None
        if self.now - replica.since_seconds < self.view.settings.residency_min:
            return None
        if replica.model.rules.priority > self.priority:
            return None
        if not replica.generations:
            return self.idle(node, known, replica)
        return self.busy(node, known, replica)

    def closing(self, known: ModelView, replica: ReplicaView) -> Option | None:
        """One that takes nothing new any more."""
        return self.ends(known, replica)

    def ends(self, known: ModelView, replica: ReplicaView) -> Option:
        """It is waited for."""
        rest = replica_rest_seconds(self.view, known, replica, self.now)
        return self.priced(replica, rest, 0.0, (), ends=True)

    def priced(
        self, replica: ReplicaView, free: float, harm: float, moves: tuple[Move, ...], *, ends: bool
    ) -> Option:
        """With what it costs in all."""
        cost = free + harm * self.view.settings.harm_weight
        return Option(cost, replica, free, harm, moves, ends)

    def idle(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:
        """One that rests: it goes at once."""
        if known.waiting:  # somebody is about to use it
            return None
        return self.priced(
            replica, self.view.settings.evict_estimate, self.loss(node, known, replica), (), ends=False
        )

    def loss(self, node: NodeView, known: ModelView, replica: ReplicaView) -> float:
        """Chance of use times the cost of bringing it back; nothing while another replica could serve."""
        spare = any(
            other is not replica and other.state is ReplicaState.READY and other.free_rows > 0
            for other in known.replicas.values()
        )
        if spare:
            return 0.0
        fetch = quickest(node, replica.model, self._peers(known), self.now)
        chance = known.arrivals.chance(self.now, self.view.settings.use_horizon)
        return chance * (fetch.load_seconds + node.start.value if fetch else math.inf)

    def busy(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:
        """One that works: it is waited for, unless others of its model will take over its rows, or moved."""
        generations = replica.generations.values()
        ends = self.ends(known, replica) if not known.waiting else None
        if any(generation.priority > self.priority for generation in generations):
            return ends
        moves = self._moves(node, known, replica)
        if not moves:
            return ends
        best = moves[0]
        moved = self.priced(
            replica, best.seconds, best.pause_seconds * len(replica.generations), moves, ends=False
        )
        return ends if ends is not None and ends.cost <= moved.cost else moved

    def _moves(self, node: NodeView, known: ModelView, replica: ReplicaView) -> tuple[Move, ...]:
        """To where its generations may go, quickest first."""
        count = len(replica.generations)
        targets = self._targets.get(replica.model.name)
        if targets is None:
            targets = self._targets[replica.model.name] = self._find_targets(known)
        found = []
        for target in targets:
            other = target.replica
            if target.node is node or (other is not None and other.free_rows < count):
                continue
            found.append(self._moved(known, replica, target))
            if len(found) == _ALTERNATIVES:
                break
        return tuple(sorted(found, key=lambda move: move.seconds))

    def _moved(self, known: ModelView, replica: ReplicaView, target: _Target) -> Move:
        loading = target.seconds / known.token_seconds.value
        generations = replica.generations.values()
        tokens = [each.tokens_in + tokens_out(known, each, self.now) + loading for each in generations]
        seconds = target.seconds + sum(recompute_seconds(known, target.node, each) for each in tokens)
        move = target.move
        return Move(
            replica.replica,
            replica.model.name,
            move.target_node,
            move.target_replica,
            move.target_devices,
            move.target_source,
            seconds,
            recompute_seconds(known, target.node, _PAUSE_TOKENS),
        )

    def _find_targets(self, known: ModelView) -> list[_Target]:
        """Replicas of the model, and nodes with room for one more: the best few of a bounded number."""
        model = known.model
        found = []
        for replica in known.replicas.values():
            home = self.view.nodes[replica.node]
            if replica.state is ReplicaState.READY and replica.free_rows > 0 and not home.draining:
                move = Move(replica.replica, model.name, home.node, replica.replica, (), None, 0.0, 0.0)
                found.append(_Target(0.0, home, replica, (), move))
        if self.models_left > 0:
            self.models_left -= 1
            found.extend(self._new_targets(known))
        found.sort(key=operator.attrgetter("seconds"))
        return found[: _ALTERNATIVES * 2]

    def _new_targets(self, known: ModelView) -> list[_Target]:
        """Nodes with room for one more replica: those that have it in DRAM, then those with most room."""
        model = known.model
        near = self._peers(known)
        fetches: list[tuple[float, int, NodeView, Fetch]] = []
        for node in self._with_room(known):
            fetch = quickest(node, model, near, self.now)
            if fetch is not None:
                fetches.append((fetch.queue_seconds + fetch.load_seconds, len(fetches), node, fetch))
            if len(fetches) >= self.view.settings.targets_max:
                break
        fetches.sort()
        targets = (self._new_target(node, model, fetch) for _, _, node, fetch in fetches[: _ALTERNATIVES + 1])
        return [target for target in targets if target is not None]

    def _with_room(self, known: ModelView) -> Iterator[NodeView]:
        model = known.model
        need = model.needs[0]
        for node in known.dram_holders.values():
            if has_room(node.free, model) and may_take(self.view, node, model):
                yield node
        ruled = bool(model.rules.labels or model.rules.nodes)
        for node in self.roomy:
            if node.free[0] < need:
                return
            if model.name in node.dram or not has_room(node.free, model):
                continue
            if not ruled or model.rules.allow(node.name, node.labels):
                yield node

    def _new_target(self, node: NodeView, model: Model, fetch: Fetch) -> _Target | None:
        devices = choose_devices(node, model)
        if devices is None:
            return None
        links = max(queue_seconds(node.devices[index].link, self.now) for index in devices)
        seconds = max(fetch.queue_seconds, links) + fetch.load_seconds + node.start.value
        move = Move(ReplicaId(""), model.name, node.node, None, devices, fetch.source, 0.0, 0.0)
        return _Target(seconds, node, None, devices, move)

    def _peers(self, known: ModelView) -> list[Peer]:
        near = self._near.get(known.model.name)
        if near is None:
            near = self._near[known.model.name] = peers(self.view, known, self.now)
        return near


class Resting(Search):
    """For what nobody waits for: idle replicas alone go, and none that their deployment asks for."""

    def idle(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:
        """See ``Search``."""
        ready = sum(each.state is ReplicaState.READY for each in known.replicas.values())
        if ready <= known.model.rules.min_replicas:
            return None
        return Search.idle(self, node, known, replica)

    def busy(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:  # noqa: ARG002
        """See ``Search``."""
        return None

    def closing(self, known: ModelView, replica: ReplicaView) -> Option | None:  # noqa: ARG002
        """See ``Search``."""
        return None


def _by_cost(options: Sequence[Option]) -> Iterator[list[Option]]:
    """Sets of options in order of their summed cost, singles, pairs and so on mixed."""
    heap: list[tuple[float, tuple[int, ...]]] = [(options[0].cost, (0,))] if options else []
    while heap:
        cost, chosen = heapq.heappop(heap)
        yield [options[index] for index in chosen]
        after = chosen[-1] + 1
        if after < len(options):
            more = cost + options[after].cost
            heapq.heappush(heap, (more, (*chosen, after)))
            heapq.heappush(heap, (more - options[chosen[-1]].cost, (*chosen[:-1], after)))


def _on_device(device: DeviceView, options: Sequence[Option], need: int) -> list[Option]:
    """The cheapest of ``options`` (cheapest first) whose going frees ``need`` bytes of a device: one that is
    enough by itself, else as many as it takes, less those that were not needed in the end."""
    missing = need - device.free_bytes
    sizes = [_bytes_on(device, option.replica) for option in options]
    for option, size in zip(options, sizes, strict=True):
        if size >= missing:
            return [option]
    going: list[tuple[Option, int]] = []
    for option, size in zip(options, sizes, strict=True):
        going.append((option, size))
        missing -= size
        if missing <= 0:
            break
    else:
        return []
    for option, size in list(reversed(going)):
        if size <= -missing:
            going.remove((option, size))
            missing += size
    return [option for option, _ in going]


def _bytes_on(device: DeviceView, replica: ReplicaView) -> int:
    part = 0 if len(replica.devices) == 1 else device.held[replica.replica]
    return device.taken_bytes(replica.model.device_bytes[part])


def _fit(node: NodeView, model: Model, going: Sequence[ReplicaView]) -> tuple[int, ...] | None:
    """Devices for the model once ``going`` have gone; None if they make too little room."""
    freed: dict[int, int] = {}
    for replica in going:
        for index, size in zip(replica.devices, replica.model.device_bytes, strict=True):
            freed[index] = freed.get(index, 0) + node.devices[index].taken_bytes(size)
    return choose_devices(node, model, freed)
