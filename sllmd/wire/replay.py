"""A window over the numbers of one sender's packets: each is let in once. Pure.

The sender counts upwards. A number above all others is new; one inside the window is new unless it was
seen; one below the window is refused, because nothing is remembered of it (RFC 4303 §3.4.3).
"""

from __future__ import annotations


class ReplayWindow:
    """The newest ``size`` numbers of a sender, as bits."""

    __slots__ = ("_highest", "_seen", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._highest = -1
        self._seen = 0

    def admit(self, number: int) -> bool:
        """Whether it comes for the first time, as far as the window reaches; remembers it."""
        ahead = number - self._highest
        if ahead > 0:
            self._seen = (self._seen << ahead | 1) & ((1 << self._size) - 1) if ahead < self._size else 1
            self._highest = number
            return True
        if -ahead >= self._size or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True
