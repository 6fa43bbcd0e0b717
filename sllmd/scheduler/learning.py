"""What is learned from what happened: bandwidths, straight lines, errors. Pure.

Estimates must follow a change within three loads and not follow a hiccup: small deviations move a value a
little, a large one is remembered, and only a second one in the same direction is believed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SURPRISE = 0.12
"""Relative deviation (as a logarithm) beyond which an observation is a surprise, not noise."""
_GAIN_FIRST = 0.5
_GAIN_MIN = 0.2
_GAIN_SURPRISE = 0.15
"""How far a value follows its first observations, later ones, and a surprise that stands alone."""
_ERRORS_KEPT = 256


@dataclass(slots=True)
class Learned:
    """A positive quantity (bytes per second, seconds) and how it is learned.

    ``value`` is the estimate in use, never above ``most``.
    """

    value: float
    most: float = math.inf
    _fitted: float = 0.0
    _count: int = 0
    _surprise: float = 0.0
    """The last observation, if it was a surprise, as log(seen / fitted); else 0."""

    def __post_init__(self) -> None:
        self._fitted = self.value
        self.value = min(self.value, self.most)

    def observe(self, seen: float) -> None:
        """A finished measurement. Nonsense (zero, negative, infinite) is ignored."""
        if not 0 < seen < math.inf:
            return
        deviation = math.log(seen / self._fitted)
        if not self._count:
            self._fitted = seen
        elif abs(deviation) <= SURPRISE:
            gain = max(_GAIN_MIN, _GAIN_FIRST / self._count)
            self._fitted *= math.exp(deviation * gain)
            self._surprise = 0.0
        elif deviation * self._surprise > 0:
            self._fitted = seen
            self._surprise = 0.0
        else:
            self._surprise = deviation
            self._fitted *= math.exp(deviation * _GAIN_SURPRISE)
        self._count += 1
        self.value = min(self._fitted, self.most)

    def at_most(self, bound: float) -> None:
        """Something that still runs shows that the value is no more than ``bound``: believed until the next
        finished measurement."""
        if 0 < bound < self.value:
            self.value = bound

    @property
    def count(self) -> int:
        """Observations so far; 0: ``value`` is an assumption."""
        return self._count


@dataclass(slots=True)
class Mean:
    """A mean of what scatters by nature, as lengths of answers do: no observation is a surprise."""

    value: float
    count: int = 0
    _square: float = 0.0
    """Mean squared deviation."""

    def observe(self, seen: float) -> None:
        """The first ones count alike, later ones a twentieth."""
        if 0 <= seen < math.inf:
            self.count += 1
            gain = max(0.05, 1 / self.count)
            off = seen - self.value
            self.value += off * gain
            self._square += (off * (seen - self.value) - self._square) * gain

    @property
    def spread(self) -> float:
        """Standard deviation; of the size of the mean itself until two were seen."""
        return math.sqrt(max(self._square, 0.0)) if self.count > 1 else self.value


@dataclass(slots=True)
class Line:
    """``seconds = a x tokens + b``, least squares with old samples fading: section 6's migration time.

    With samples of one size only, ``a`` keeps its assumed share of the whole.
    """

    a: float
    b: float
    keep: float = 0.9
    """What a sample still counts when the next one comes."""
    _weight: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def observe(self, tokens: float, seconds: float) -> None:
        """One recomputation of ``tokens`` tokens took ``seconds``."""
        if tokens < 0 or not 0 < seconds < math.inf:
            return
        self._weight = self._weight * self.keep + 1
        self._x = self._x * self.keep + tokens
        self._y = self._y * self.keep + seconds
        self._xx = self._xx * self.keep + tokens * tokens
        self._xy = self._xy * self.keep + tokens * seconds
        self._fit()

    def _fit(self) -> None:
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x * mean_x
        if spread > 1e-3 * mean_x * mean_x + 1e-9:
            slope = (self._xy / self._weight - mean_x * mean_y) / spread
            self.a = min(max(slope, 0.0), mean_y / mean_x)
            self.b = max(mean_y - self.a * mean_x, 0.0)
            return
        assumed = self.a * mean_x + self.b
        if assumed > 0:
            self.a, self.b = self.a * mean_y / assumed, self.b * mean_y / assumed

    def seconds(self, tokens: float) -> float:
        """The estimate for ``tokens`` tokens."""
        return self.a * tokens + self.b


@dataclass(slots=True)
class Errors:
    """Relative errors of the last estimates of one tier, newest last."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_ERRORS_KEPT))

    def record(self, estimated_seconds: float, actual_seconds: float) -> None:
        """Keep ``(estimated - actual) / actual``."""
        if actual_seconds > 0:
            self.recent.append((estimated_seconds - actual_seconds) / actual_seconds)

    def quantile(self, share: float) -> float | None:
        """The size of error that ``share`` of the estimates stay within; None without any."""
        return quantile(sorted(abs(error) for error in self.recent), share) if self.recent else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """The ``share`` quantile of an ascending sequence, between neighbours by proportion."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
