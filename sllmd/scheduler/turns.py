"""Whose turn it is among those who wait, and when a busy model has to let another one in. Pure.

Keys take turns by virtual time (weighted fair queueing; Demers, Keshav and Shenker 1989, with the clock of
Goyal's start-time fair queueing, 1996): what a key is served moves its clock on, the less the higher the
priority, and the key whose clock is least behind goes last. Within a key, priority goes first, then who came
first. So one key with a thousand requests delays another key's only one by no more than
``weight / other's weight + 2`` of its own, however long it has been there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from sllmd.core.ids import ModelName
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.view import ModelView, ReplicaView

_PRIORITY_MAX = 6
"""Priorities beyond are taken as this: 64 turns for one say that plainly enough, and nobody starves."""


class Waiting(Protocol):
    """Somebody who waits. Of two that are alike, the one that was given first came first."""

    @property
    def key(self) -> str:
        """Whose request it is."""

    @property
    def priority(self) -> int:
        """Each step counts twice the turns."""


Someone = TypeVar("Someone", bound=Waiting)


class _Place(NamedTuple):
    due: float
    """The key's clock when this one will have been served."""
    order: int


@dataclass(slots=True)
class Turns:
    """Each key's clock, for one queue. Only keys that wait, or were served a moment ago, are remembered."""

    _clock: float = 0.0
    """Of the last one that was served: who comes anew begins here."""
    _clocks: dict[str, float] = field(default_factory=dict)

    def order(self, waiting: Iterable[Someone]) -> list[Someone]:
        """``waiting`` in the order in which they should be served.

        1. Within a key by priority, then as they came.
        2. A key that did not wait before begins now. One that waited for what was not to be had keeps what it
           could not use for one turn, no longer: else it would then keep all others waiting.
        3. Across keys by the clock that each will have afterwards, then as they came.
        """
        numbered = sorted(enumerate(waiting), key=lambda each: (-each[1].priority, each[0]))  # 1
        clocks: dict[str, float] = {}
        places: list[tuple[_Place, Someone]] = []
        for came, one in numbered:
            turn = 1 / weight(one.priority)
            if one.key not in clocks:
                clocks[one.key] = self._clocks[one.key] = self._start(one.key, turn)  # 2
            clocks[one.key] += turn
            places.append((_Place(clocks[one.key], came), one))
        self._clocks = {key: at for key, at in self._clocks.items() if key in clocks or at > self._clock}
        return [one for _, one in sorted(places, key=lambda place: place[0])]  # 3

    def _start(self, key: str, turn: float) -> float:
        return max(self._clocks.get(key, self._clock), self._clock - turn)

    def served(self, one: Waiting) -> None:
        """``one`` had its turn."""
        turn = 1 / weight(one.priority)
        start = self._start(one.key, turn)
        self._clock = max(self._clock, start)
        self._clocks[one.key] = start + turn


def weight(priority: int) -> float:
    """Turns that a priority has for one of priority 0."""
    return 2.0 ** max(-_PRIORITY_MAX, min(priority, _PRIORITY_MAX))


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
    if now - replica.since_seconds < residency_seconds(switch_seconds, settings):
        return False
    return other_wait_seconds > own_wait_seconds + 2 * switch_seconds


def residency_seconds(switch_seconds: float, settings: SchedulerSettings) -> float:
    """How long a replica stays before another model pushes it out: never shorter than bringing it took."""
    return max(settings.residency_min, switch_seconds)


def longest_wait(known: ModelView, heads: Mapping[ModelName, float], now: float) -> float:
    """How long the first in line of any other model has waited; 0 without any."""
    waits = (now - arrived for name, arrived in heads.items() if name != known.model.name)
    return max(waits, default=0.0)
