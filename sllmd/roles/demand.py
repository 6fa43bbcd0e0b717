"""How likely a checkpoint is asked for again on this node, and how long it stays without. Pure.

Owns: the arrivals at this node, by checkpoint. Times are seconds since the epoch: demand has its hours.
"""

from __future__ import annotations

from sllmd.core.ids import Digest
from sllmd.scheduler.arrivals import Arrivals
from sllmd.scheduler.facts import Rules
from sllmd.scheduler.scaling import keep_alive_seconds
from sllmd.scheduler.settings import SchedulerSettings

_CHECKPOINTS_MAX = 4096
"""Remembered; beyond that, the one that was not asked for longest is forgotten."""


class Demand:
    """See the module."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._arrivals: dict[Digest, Arrivals] = {}

    def asked(self, digest: Digest, now: float) -> None:
        """Somebody asks for it."""
        arrivals = self._arrivals.pop(digest, None) or Arrivals()
        arrivals.record(now)
        self._arrivals[digest] = arrivals
        if len(self._arrivals) > _CHECKPOINTS_MAX:
            del self._arrivals[next(iter(self._arrivals))]

    def chance(self, digest: Digest, now: float) -> float | None:
        """That it is asked for within the horizon; None: it never was."""
        arrivals = self._arrivals.get(digest)
        return None if arrivals is None else arrivals.chance(now, self._settings.use_horizon)

    def keep_alive_seconds(self, load_seconds: float) -> float:
        """How long an idle replica stays where nobody says: some loads' time, within bounds."""
        return keep_alive_seconds(Rules(), load_seconds, self._settings)
