"""How many replicas a model should have, and what an idle one does. Pure.

Invariants: more replicas come at once, fewer only after they have not been needed for a while; so the number
in between stays, and nothing is started and stopped in turns; an idle replica goes down one step at a time:
ready, asleep in DRAM, gone; nothing goes before its minimum residency.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from sllmd.core.ids import NodeId, ReplicaId, RequestId
from sllmd.scheduler.decisions import Load
from sllmd.scheduler.estimate import peers, quickest
from sllmd.scheduler.facts import Request, Rules
from sllmd.scheduler.placement import place
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.victims import Resting
from sllmd.scheduler.view import ClusterView, ModelView, ReplicaState, ReplicaView

_SAMPLES_MAX = 512
"""Wishes remembered per model; a model whose wishes change more often than that is busy anyway."""
_LIVING = (ReplicaState.PROMISED, ReplicaState.LOADING, ReplicaState.READY)
_LAST = 1_000_000
"""A place in line behind everybody: what is free or frees up is no reason to wait."""


def wanted(known: ModelView) -> int:
    """Replicas that running and waiting generations ask for, within the deployment's bounds."""
    rules = known.model.rules
    running = sum(len(replica.generations) for replica in known.replicas.values())
    per_replica = rules.target_running or float(known.model.rows)
    return _bounded(math.ceil((running + known.waiting) / per_replica), rules)


def _bounded(count: int, rules: Rules) -> int:
    return min(max(count, rules.min_replicas), rules.max_replicas)


@dataclass(slots=True)
class Steady:
    """What ``wanted`` said lately; its largest value within the delay is the target."""

    _wishes: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_SAMPLES_MAX))

    def target(self, wish: int, now: float, delay_seconds: float) -> int:
        """The number of replicas to go for; records ``wish``. A clock that jumps back forgets the future."""
        while self._wishes and self._wishes[-1][0] > now:
            self._wishes.pop()
        while self._wishes and self._wishes[0][0] < now - delay_seconds:
            self._wishes.popleft()
        while self._wishes and self._wishes[-1][1] <= wish:
            self._wishes.pop()
        self._wishes.append((now, wish))
        return self._wishes[0][1]

    @property
    def is_new(self) -> bool:
        """Nothing was wished yet."""
        return not self._wishes

    def changes_at(self, delay_seconds: float) -> float:
        """When the target falls, should nothing more be wished; infinite if it is the last wish."""
        return self._wishes[0][0] + delay_seconds if len(self._wishes) > 1 else math.inf


@dataclass(frozen=True, slots=True)
class Scale:
    """What should become of a model's replicas now."""

    missing: int
    """So many more are asked for."""
    surplus: ReplicaId | None
    """The one that is one too many: it is to finish what it runs, and go."""
    again_seconds: float
    """Time of the clock at which to look again though nothing has changed; infinite: never."""


def scale(view: ClusterView, known: ModelView, steady: Steady, now: float) -> Scale:
    """More or fewer replicas of a model.

    1. Fewer live than are asked for at this moment: so many are missing. The first one is started by the
       request that needs it, or by the deployment's minimum.
    2. More are ready than were asked for at any moment of the delay, which is the keep-alive or
       ``scale_down_delay`` if that is longer: one goes, the least busy of those that have been there as
       long. What a node or its operator started by itself has its stay, too. The last one goes when it has
       been idle for its keep-alive, of which its node keeps count.
    """
    settings, rules = view.settings, known.model.rules
    living = [each for each in known.replicas.values() if each.state in _LIVING]
    ready = [each for each in living if each.state is ReplicaState.READY]
    wish = wanted(known)
    delay = max(settings.scale_down_delay, _keep_alive_seconds(view, known, ready, now))
    if steady.is_new:  # what was asked for before, nobody knows: what is there was needed a moment ago
        steady.target(len(ready), now, delay)
    target = max(steady.target(wish, now, delay), 1)
    missing = (wish if living else rules.min_replicas) - len(living)  # 1
    if missing > 0 or len(ready) <= 1:
        return Scale(max(missing, 0), None, math.inf)
    if len(ready) <= target:
        return Scale(0, None, steady.changes_at(delay))
    stay = max(delay, settings.residency_min)
    free_at = now - stay
    resident = [each for each in ready if each.since_seconds <= free_at and not each.reserved_rows]
    if not resident:
        return Scale(0, None, min(each.since_seconds for each in ready) + stay)
    least = min(resident, key=lambda each: (len(each.generations), each.used_seconds))
    return Scale(0, least.replica, now + settings.residency_min)  # 2


def _keep_alive_seconds(
    view: ClusterView, known: ModelView, ready: Collection[ReplicaView], now: float
) -> float:
    """As set, or from what the quickest new load of it would take on the nodes that have it now."""
    rules = known.model.rules
    if rules.keep_alive_seconds is not None or not ready:
        return keep_alive_seconds(rules, 0.0, view.settings)
    near = peers(view, known, now)
    seconds = []
    for replica in ready:
        node = view.nodes[replica.node]
        fetch = quickest(node, known.model, near, now)
        seconds.append(fetch.load_seconds + node.start.value if fetch is not None else math.inf)
    return keep_alive_seconds(rules, min(seconds), view.settings)


def further(view: ClusterView, known: ModelView, now: float, only: Collection[NodeId]) -> Load | None:
    """Where one more replica of a model is started, on one of these nodes: in free room, or in that of idle
    replicas that are worth less there.

    None: there is no room, or a row is free for the last one who waits before a load would be done.
    """
    rules = known.model.rules
    by_rule = rules.target_running > 0 or len(known.replicas) < rules.min_replicas
    ahead = _LAST if by_rule else max(known.waiting - 1, 0)
    request = Request(RequestId("one more"), known.model.name, now)
    decision = place(view, request, now, ahead=ahead, only=only, searching=Resting).decision
    return decision if isinstance(decision, Load) else None


class Idle(StrEnum):
    """What becomes of a replica without work."""

    STAY = "stay"
    SLEEP = "sleep"
    GO = "go"


def keep_alive_seconds(rules: Rules, load_seconds: float, settings: SchedulerSettings) -> float:
    """How long an idle replica stays: as set, else about as long as a few loads take (section 6)."""
    if rules.keep_alive_seconds is not None:
        return rules.keep_alive_seconds
    derived = load_seconds * settings.keep_alive_loads
    return min(max(derived, settings.keep_alive_min), settings.keep_alive_max)


def idle_action(
    replica: ReplicaView,
    ready_count: int,
    target: int,
    load_seconds: float,
    now: float,
    settings: SchedulerSettings,
) -> Idle:
    """What to do with a replica now; ``load_seconds``: what bringing it back would take.

    1. It works, has only just come, or is needed for the target: it stays.
    2. Idle and ready for its keep-alive: it sleeps, which frees its devices.
    3. Asleep for as long again: it goes.
    """
    if replica.generations or replica.reserved_rows:
        return Idle.STAY
    keep = keep_alive_seconds(replica.model.rules, load_seconds, settings)
    if replica.state is ReplicaState.ASLEEP:
        return Idle.GO if now - replica.since_seconds >= max(keep, settings.keep_alive_min) else Idle.STAY
    if replica.state is not ReplicaState.READY or ready_count <= max(
        target, replica.model.rules.min_replicas
    ):
        return Idle.STAY
    if now - replica.since_seconds < settings.residency_min:
        return Idle.STAY
    return Idle.SLEEP if now - replica.used_seconds >= keep else Idle.STAY
