"""Whose turn it is among those who wait, and when a busy model has to let another one in. Pure.

Order: who has starved; then priority; then the key that was served least lately; then who came first. So one
key with a thousand requests delays another key's first request by at most one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sllmd.core.ids import ModelName
from sllmd.scheduler.facts import Request
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.view import ModelView, ReplicaView

_HALF_LIFE_SECONDS = 60.0
_KEYS_MAX = 4096
"""Keys remembered; beyond that those served least are forgotten, which only forgives."""


@dataclass(slots=True)
class Served:
    """What each key got lately, fading."""

    _amount: dict[str, float] = field(default_factory=dict)
    _at: dict[str, float] = field(default_factory=dict)

    def add(self, key: str, now: float, amount: float = 1.0) -> None:
        """``key`` was served."""
        self._amount[key] = self.of(key, now) + amount
        self._at[key] = now
        if len(self._amount) > _KEYS_MAX:
            least = sorted(self._amount, key=lambda each: self.of(each, now))[: _KEYS_MAX // 8]
            for each in least:
                del self._amount[each], self._at[each]

    def of(self, key: str, now: float) -> float:
        """What ``key`` got, halving every minute."""
        age = max(now - self._at.get(key, now), 0.0)
        return self._amount.get(key, 0.0) * math.exp2(-age / _HALF_LIFE_SECONDS)


def in_turn(
    waiting: Iterable[Request], priorities: dict[str, int], served: Served, now: float, starve_after: float
) -> list[Request]:
    """``waiting`` in the order in which they should be served. ``priorities``: of the models."""
    places: dict[tuple[int, str], int] = {}

    def rank(request: Request) -> tuple[bool, int, float, float]:
        starved = now - request.arrived_seconds >= starve_after
        priority = request.priority + priorities.get(request.model, 0)
        share = served.of(request.key, now)
        if starved:
            return False, 0, 0.0, request.arrived_seconds
        place = places[priority, request.key] = places.get((priority, request.key), -1) + 1
        return True, -priority, share + place, request.arrived_seconds

    by_arrival = sorted(waiting, key=lambda request: (request.arrived_seconds, request.request_id))
    return sorted(by_arrival, key=rank)


def must_yield(
    replica: ReplicaView,
    own_wait_seconds: float,
    other_wait_seconds: float,
    switch_seconds: float,
    settings: SchedulerSettings,
    now: float,
) -> bool:
    """Whether a row that has just become free is left empty, so that the replica goes and another model
    comes.

    Two hot models that share a device take turns this way: each serves for its residency and for as long as
    the switch itself takes, so that at most half of the time goes into switching, and then whoever has waited
    longer by more than a switch goes first.
    """
    if now - replica.since_seconds < max(settings.residency_min, switch_seconds):
        return False
    return other_wait_seconds > own_wait_seconds + 2 * switch_seconds


def longest_wait(known: ModelView, heads: Mapping[ModelName, float], now: float) -> float:
    """How long the first in line of any other model has waited; 0 without any."""
    waits = (now - arrived for name, arrived in heads.items() if name != known.model.name)
    return max(waits, default=0.0)
