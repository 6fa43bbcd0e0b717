"""The policies that are compared.

All share the view, the estimator, keep-alive, caches, the use of ready replicas and the rule that a request
which no row is on its way for asks for one more replica. They differ in where that replica goes:

* ``startup``: where it starts soonest (``scheduler.placement``), moving generations where that helps; on idle
  SSDs models are lifted into DRAM ahead of need (``scheduler.prefetch``), which none of the others does;
* ``reactive``: the same without lifting ahead, to tell the two apart;
* ``waiting``: as ``reactive``, but busy replicas are waited for instead of moved, and a node has one replica
  of a model at most, as it is among daemons: for predictions;
* ``random``: on any node with free devices or idle replicas;
* ``least-loaded``: on that of these nodes where the fewest generations run;
* ``locality``: on the node that has the model nearest to its devices, waiting for that node when it is busy;
* ``shepherd``: where it starts soonest, stopping running generations instead of moving them: they queue again
  and recompute what they had. As in Shepherd nobody is stopped again and again: once per generation;
* ``download``: as ``least-loaded``, from the remote source every time, as serving systems without a local
  cache of checkpoints do;
* ``oracle``: ``startup``, knowing when every running generation ends and which request comes next, and
  choosing what is best for both together: one step of the future.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sllmd.core.ids import NodeId, ReplicaId
from sllmd.scheduler.decisions import Decision, Load, Refuse, Source, Use, Wait
from sllmd.scheduler.estimate import load_seconds, quickest
from sllmd.scheduler.facts import Model, Request, Tier
from sllmd.scheduler.keeper import Keeper
from sllmd.scheduler.placement import asleep_on, place
from sllmd.scheduler.room import choose_devices, has_room, may_take
from sllmd.scheduler.victims import Clearing, Option, Search
from sllmd.scheduler.view import ClusterView, ModelView, NodeView, ReplicaState, ReplicaView

POLICIES = ("startup", "reactive", "random", "least-loaded", "locality", "shepherd", "download")


LIFTING = frozenset({"startup", "oracle"})
"""The policies that use idle SSDs."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a policy may use besides the view."""

    keeper: Keeper
    chance: random.Random
    next_request: Callable[[], Request | None]
    """The request that comes next: for the oracle only."""
    preempted: Callable[[ReplicaId], bool]
    """Whether some generation of a replica was already stopped once."""


Policy = Callable[[Request, float, int], Decision]


def make_policy(name: str, setting: Setting) -> Policy:
    """The policy of that name; KeyError if there is none."""
    makers: dict[str, Callable[[Setting], Policy]] = {
        "startup": _startup,
        "reactive": _startup,
        "waiting": _waiting,
        "random": lambda setting: _spread(setting, setting.chance.choice),
        "least-loaded": lambda setting: _spread(setting, _least_loaded),
        "locality": _locality,
        "shepherd": _shepherd,
        "download": lambda setting: _spread(setting, _least_loaded, Source(Tier.REMOTE)),
        "oracle": _oracle,
    }
    return makers[name](setting)


def _startup(setting: Setting) -> Policy:
    view = setting.keeper.view
    return lambda request, now, ahead: place(view, request, now, ahead=ahead).decision


class _Patient(Search):
    """Busy replicas are waited for."""

    def busy(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:  # noqa: ARG002
        return None if known.waiting else self.ends(known, replica)


def _waiting(setting: Setting) -> Policy:
    view = setting.keeper.view

    def decide(request: Request, now: float, ahead: int) -> Decision:
        replicas = view.models[request.model].replicas.values()
        holders = {each.node for each in replicas if each.state is not ReplicaState.ASLEEP}
        others = [node for node in view.nodes if node not in holders]
        only = others if holders else None
        return place(view, request, now, ahead=ahead, only=only, searching=_Patient).decision

    return decide


# --- no estimate decides where ---

_Choice = Callable[[Sequence[NodeView]], NodeView]


def _least_loaded(nodes: Sequence[NodeView]) -> NodeView:
    return min(nodes, key=lambda node: (node.running, -sum(node.free)))


def _spread(setting: Setting, choice: _Choice, source: Source | None = None) -> Policy:
    view = setting.keeper.view

    def decide(request: Request, now: float, ahead: int) -> Decision:
        known = view.models[request.model]
        settled = _settled(known, ahead)
        if settled is not None:
            return settled
        found = _with_room(view, known.model, now)
        if not found:
            return Wait("no node has room", math.inf)
        node = choice([node for node, _ in found])
        clearing = next(clearing for each, clearing in found if each is node)
        return _load(view, node, known.model, clearing, source, now)

    return decide


def _settled(known: ModelView, ahead: int) -> Decision | None:
    """Use a free row, or wait for one that is on its way; None: one more replica is wanted."""
    rows = 0
    for replica in known.replicas.values():
        if replica.state is ReplicaState.READY and replica.free_rows > 0:
            if ahead < replica.free_rows:
                return Use(replica.replica, replica.node)
            ahead -= replica.free_rows
        elif replica.state in (ReplicaState.LOADING, ReplicaState.PROMISED):
            rows += max(replica.free_rows, 0)
    if ahead < rows:
        return Wait("the model is loading", math.nan)
    asleep = sum(replica.state is ReplicaState.ASLEEP for replica in known.replicas.values())
    if len(known.replicas) - asleep >= known.model.rules.max_replicas:
        return Wait("all rows of the model are taken", math.nan)
    return None


class _Staying(Search):
    """Only idle replicas go, nobody is moved or waited for."""

    def busy(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:  # noqa: ARG002
        return None

    def closing(self, known: ModelView, replica: ReplicaView) -> Option | None:  # noqa: ARG002
        return None


def _with_room(view: ClusterView, model: Model, now: float) -> list[tuple[NodeView, Clearing]]:
    """Nodes where a replica can go at once, and which idle replicas leave for it."""
    found = []
    search = _Staying(view, now, 0, ())
    for node in view.nodes.values():
        if not may_take(view, node, model):
            continue
        if has_room(node.free, model):
            devices = choose_devices(node, model)
            assert devices is not None
            found.append((node, Clearing((), devices, 0.0, 0.0, None)))
        elif (clearing := search.clear(node, model, math.inf)) is not None:
            found.append((node, clearing))
    return found


def _load(
    view: ClusterView, node: NodeView, model: Model, clearing: Clearing, source: Source | None, now: float
) -> Decision:
    if source is None:
        fetch = quickest(node, model, [], now)
        if fetch is None:
            return Refuse("no source has the model")
        source, queue, seconds = fetch
    else:
        queue, seconds = max(node.in_path.until - now, 0.0), load_seconds(view, node, model, source)
    wakes = asleep_on(view.models[model.name], node)
    start = node.start if wakes is None else node.wake
    startup = max(queue, clearing.free_seconds) + seconds + start.value
    return Load(node.node, clearing.devices, source, startup, seconds, clearing.victims, wakes)


def _locality(setting: Setting) -> Policy:
    view = setting.keeper.view

    def decide(request: Request, now: float, ahead: int) -> Decision:
        known = view.models[request.model]
        settled = _settled(known, ahead)
        if settled is not None:
            return settled
        for holders in (known.dram_holders, known.ssd_holders):
            if holders:
                found = [each for each in _with_room(view, known.model, now) if each[0].node in holders]
                if not found:
                    return Wait("the node that has it is busy", math.inf)
                node, clearing = min(found, key=lambda each: each[1].harm_seconds)
                return _load(view, node, known.model, clearing, None, now)
        found = _with_room(view, known.model, now)
        if not found:
            return Wait("no node has room", math.inf)
        return _load(view, found[0][0], known.model, found[0][1], None, now)

    return decide


# --- preemption, and one step of the future ---


def _shepherd(setting: Setting) -> Policy:
    view = setting.keeper.view

    class Stopping(Search):
        """A busy replica goes as fast as an idle one, if nobody on it was stopped before."""

        def busy(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:
            if setting.preempted(replica.replica):
                return self.ends(known, replica)
            loss = self.loss(node, known, replica)
            return self.priced(replica, self.view.settings.evict_estimate, loss, (), ends=False)

    def decide(request: Request, now: float, ahead: int) -> Decision:
        return place(view, request, now, ahead=ahead, searching=Stopping).decision

    return decide


def _oracle(setting: Setting) -> Policy:
    keeper = setting.keeper
    view = keeper.view

    def total(request: Request, load: Load, now: float) -> float:
        """Startup of this request by that load, and of the next one after it."""
        following = setting.next_request()
        if following is None:
            return load.startup_seconds
        replica = ReplicaId("what if")
        keeper.promise(replica, view.models[request.model].model, load, now)
        for victim in load.victims:
            view.replicas[victim.replica].reserved_rows += 1_000  # gone, as far as the next one is concerned
        after = _startup_of(place(view, following, max(now, following.arrived_seconds)).decision)
        for victim in load.victims:
            view.replicas[victim.replica].reserved_rows -= 1_000
        keeper.withdraw(replica)
        return load.startup_seconds + after

    def decide(request: Request, now: float, ahead: int) -> Decision:
        best = place(view, request, now, ahead=ahead).decision
        if not isinstance(best, Load):
            return best
        least = total(request, best, now)
        for node in list(view.nodes):
            other = place(view, request, now, ahead=ahead, only=(node,)).decision
            if isinstance(other, Load) and other.node != best.node:
                seconds = total(request, other, now)
                if seconds < least - 1e-9:
                    best, least = other, seconds
        return best

    return decide


def _startup_of(decision: Decision) -> float:
    match decision:
        case Load():
            return decision.startup_seconds
        case Wait():
            return min(decision.eta_seconds, 1e6)
        case _:
            return 0.0


def node_of(decision: Decision) -> NodeId | None:
    """Where a decision leads, if anywhere."""
    return decision.node if isinstance(decision, Use | Load) else None
