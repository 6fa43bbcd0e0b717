"""How fast a hop is, and how fast it may be. Pure: time arrives as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Gauge:
    """A hop's bandwidth, smoothed over its busy time.

    Bytes and seconds are summed with weights that halve every ``half_life_seconds`` of busy time, so that
    a long transfer counts for more than a short one and idle time not at all.
    """

    half_life_seconds: float = 2.0
    _bytes: float = 0.0
    _seconds: float = 0.0

    def observe(self, count: int, seconds: float) -> None:
        """``count`` bytes passed in ``seconds`` of busy time."""
        keep = 0.5 ** (seconds / self.half_life_seconds)
        self._bytes = self._bytes * keep + count
        self._seconds = self._seconds * keep + seconds

    @property
    def bytes_per_second(self) -> float | None:
        """None until something was observed."""
        return self._bytes / self._seconds if self._seconds > 0 else None


@dataclass(slots=True)
class Throttle:
    """A cap on a hop: transfers are given turns, one after the other, as long as the cap asks for."""

    bytes_per_second: int
    """0: no cap."""
    _free_at: float = 0.0

    def book(self, count: int, now: float) -> tuple[float, float]:
        """A turn for ``count`` bytes: when it begins, and when the last of them may have passed."""
        if not self.bytes_per_second:
            return now, now
        begin = max(now, self._free_at)
        self._free_at = begin + count / self.bytes_per_second
        return begin, self._free_at
