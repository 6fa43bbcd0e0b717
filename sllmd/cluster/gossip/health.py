"""Lifeguard's view of oneself: a node that fares badly trusts its own suspicions less (§IV-A). Pure."""

from __future__ import annotations


class Health:
    """0 is well. Missed answers, having to refute and standing still raise it, answered probes lower it."""

    def __init__(self, score_max: int) -> None:
        self._score_max = score_max
        self.score = 0

    def worse(self, by: int = 1) -> None:
        """Something points at this node itself."""
        self.score = min(self._score_max, self.score + by)

    def better(self) -> None:
        """A probe was answered."""
        self.score = max(0, self.score - 1)

    @property
    def factor(self) -> int:
        """By how much to probe more slowly and wait longer."""
        return self.score + 1
