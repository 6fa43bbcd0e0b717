"""How many replicas a model should have, and what an idle one does. Pure.

Invariants: more replicas come at once, fewer only after they have not been needed for a while; an idle
replica goes down one step at a time: ready, asleep in DRAM, gone; nothing goes before its minimum
residency.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from sllmd.scheduler.facts import Rules
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.view import ModelView, ReplicaState, ReplicaView

_SAMPLES_MAX = 512
"""Wishes remembered per model; a model whose wishes change more often than that is busy anyway."""


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

    def target(self, wish: int, now: float, settings: SchedulerSettings) -> int:
        """The number of replicas to go for; records ``wish``. A clock that jumps back forgets the future."""
        while self._wishes and self._wishes[-1][0] > now:
            self._wishes.pop()
        while self._wishes and self._wishes[0][0] < now - settings.scale_down_delay:
            self._wishes.popleft()
        while self._wishes and self._wishes[-1][1] <= wish:
            self._wishes.pop()
        self._wishes.append((now, wish))
        return self._wishes[0][1]


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
