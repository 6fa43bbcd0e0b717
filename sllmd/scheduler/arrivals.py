"""When a model is asked for, and how likely again soon. Pure.

Two histograms: of the gaps between requests, and of the times of the day. Requests come in bursts, so a rate
would promise too much right after one: what counts is how gaps that were already this long went on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_DAY_SECONDS = 86_400.0
_BINS = 288
"""Five minutes each: fine enough to fetch ahead of a daily peak, coarse enough to see one twice."""
_BIN_SECONDS = _DAY_SECONDS / _BINS
_GAP_BINS = 40
_GAP_LEAST_SECONDS = 1e-3
"""Bins of gaps double from a millisecond; the last one is beyond any gap that matters."""
_GAP_KEEP = 0.999
"""What an old gap counts when the next one comes."""
_DAYS_KEPT = 7.0
"""Days after which what was seen in a bin counts 1/e. A first day counts half: one peak is no habit."""


@dataclass(slots=True)
class Arrivals:
    """Times are seconds of any clock; for the histogram to mean minutes of a day, of wall time."""

    count: int = 0
    last_seconds: float = -math.inf
    _gaps: list[float] = field(default_factory=lambda: [0.0] * _GAP_BINS)
    _bins: dict[int, float] = field(default_factory=dict)
    """Arrivals in a bin on the last day that it had any."""
    _past: dict[int, float] = field(default_factory=dict)
    """Mean arrivals per day in a bin before that day."""
    _seen: dict[int, float] = field(default_factory=dict)
    """That day, counted from the clock's beginning."""

    def record(self, now: float) -> None:
        """Somebody asked. A clock that went back counts as standing still."""
        if self.count:
            self._gaps = [count * _GAP_KEEP for count in self._gaps]
            self._gaps[min(int(_gap_bin(now - self.last_seconds)), _GAP_BINS - 1)] += 1
        self.last_seconds = max(now, self.last_seconds)
        self.count += 1
        place = int(now % _DAY_SECONDS // _BIN_SECONDS)
        day = now // _DAY_SECONDS
        before, begun = self._bins.get(place, 0.0), self._seen.get(place, day)
        if day != begun:  # what today's bin holds becomes a day's worth of the past
            self._past[place] = self._other_days(place, now)
            before = 0.0
        self._bins[place], self._seen[place] = before + 1, day

    def _other_days(self, place: int, now: float) -> float:
        """Arrivals per day in a bin on days before this one, the last ones counting most."""
        past, bin_day = self._past.get(place, 0.0), self._seen.get(place)
        days = now // _DAY_SECONDS - bin_day if bin_day is not None else 0.0
        if days <= 0:
            return past
        share = 1 - math.exp(-1 / _DAYS_KEPT) if place in self._past else 0.5
        return (past + (self._bins[place] - past) * share) * math.exp(-(days - 1) / _DAYS_KEPT)

    def per_second(self, now: float) -> float:
        """The usual rate at this time of day, as other days showed it: today's requests are in the gaps."""
        place = int(now % _DAY_SECONDS // _BIN_SECONDS)
        return self._other_days(place, now) / _BIN_SECONDS

    def chance(self, now: float, horizon_seconds: float) -> float:
        """The chance of at least one arrival until then: by the gaps, or by the time of day if that says
        more."""
        if not self.count:
            return 0.0
        usual = max(self.per_second(now), self.per_second(now + horizon_seconds))
        return max(self._chance_by_gaps(now, horizon_seconds), 1 - math.exp(-usual * horizon_seconds))

    def _chance_by_gaps(self, now: float, horizon_seconds: float) -> float:
        """Of the gaps that outlasted the present silence, the share that ended within the horizon. One
        more gap is assumed, of which nothing is known: it ends within a time as long as itself with an
        even chance."""
        silence = max(now - self.last_seconds, 0.0)
        low, high = _gap_bin(silence), _gap_bin(silence + horizon_seconds)
        longer = self._beyond(low)
        ended = longer - self._beyond(high)
        unknown = horizon_seconds / (horizon_seconds + silence)
        return (ended + unknown) / (longer + 1)

    def _beyond(self, place: float) -> float:
        """Gaps beyond a place among the bins."""
        whole = int(place)
        if whole >= _GAP_BINS:
            return 0.0
        return sum(self._gaps[whole + 1 :]) + self._gaps[whole] * (1 - (place - whole))


def _gap_bin(seconds: float) -> float:
    return math.log2(1 + max(seconds, 0.0) / _GAP_LEAST_SECONDS)
