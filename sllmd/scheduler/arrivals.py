"""When a model is asked for: a fading rate and a histogram of the minutes of the day. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_DAY_SECONDS = 86_400.0
_BINS = 288
"""Five minutes each: fine enough to fetch ahead of a daily peak, coarse enough to see one twice."""
_BIN_SECONDS = _DAY_SECONDS / _BINS
_HALF_LIFE_SECONDS = 300.0
_DAYS_KEPT = 7.0
"""Days after which what was seen in a bin counts 1/e."""


@dataclass(slots=True)
class Arrivals:
    """Times are seconds of any clock; for the histogram to mean minutes of a day, of wall time."""

    count: int = 0
    last_seconds: float = -math.inf
    _rate: float = 0.0
    _bins: dict[int, float] = field(default_factory=dict)
    """Arrivals per day in a bin, fading."""
    _seen: dict[int, float] = field(default_factory=dict)
    """When a bin was last written to."""

    def record(self, now: float) -> None:
        """Somebody asked. A clock that went back counts as standing still."""
        self._rate = self.per_second_lately(now) + math.log(2) / _HALF_LIFE_SECONDS
        self.last_seconds = max(now, self.last_seconds)
        self.count += 1
        place = int(now % _DAY_SECONDS // _BIN_SECONDS)
        self._bins[place] = self._faded(place, now) + 1 / _DAYS_KEPT
        self._seen[place] = now

    def _faded(self, place: int, now: float) -> float:
        """A bin's arrivals per day. Within one day nothing fades, or a busy bin would forget itself."""
        days = (now - self._seen.get(place, now)) // (_DAY_SECONDS / 2)
        return self._bins.get(place, 0.0) * math.exp(-max(days, 0.0) / 2 / _DAYS_KEPT)

    def per_second_lately(self, now: float) -> float:
        """The rate of the last minutes, halving every five minutes of silence."""
        silence = max(now - self.last_seconds, 0.0)
        return self._rate * math.exp2(-silence / _HALF_LIFE_SECONDS)

    def per_second(self, now: float) -> float:
        """The larger of the rate lately and that of this time of day."""
        place = int(now % _DAY_SECONDS // _BIN_SECONDS)
        return max(self.per_second_lately(now), self._faded(place, now) / _BIN_SECONDS)

    def chance(self, now: float, horizon_seconds: float) -> float:
        """The chance of at least one arrival until then."""
        ahead = max(self.per_second(now), self.per_second(now + horizon_seconds))
        return 1 - math.exp(-ahead * horizon_seconds)
