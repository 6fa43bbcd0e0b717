"""Prompts that begin alike are computed once.

Owns: copies of the keys and values of rows that have left, least recently used first out. Knows nothing
of models. A new row takes the longest beginning it shares with a retained or a running one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

PREFIX_TOKENS_MIN = 16
"""Shorter beginnings are computed faster than they are found."""


@dataclass(frozen=True, slots=True)
class Retained:
    """A row that left: its tokens and what ``SlotCache.read_row`` gave."""

    tokens: tuple[int, ...]
    row: list[torch.Tensor]


class PrefixStore:
    """Retained rows, most recently used last, ``tokens_max`` tokens in all."""

    def __init__(self, tokens_max: int) -> None:
        self.tokens_max = tokens_max
        self._retained: list[Retained] = []

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return sum(len(entry.tokens) for entry in self._retained)

    def wants(self, tokens: Sequence[int]) -> bool:
        """Whether keeping a row of these tokens would be of use."""
        return PREFIX_TOKENS_MIN <= len(tokens) <= self.tokens_max

    def put(self, tokens: Sequence[int], row: list[torch.Tensor]) -> None:
        """Keep a row; what it makes superfluous and what is oldest goes."""
        kept = tuple(tokens)
        self._retained = [
            entry for entry in self._retained if common_length(entry.tokens, kept) < len(entry.tokens)
        ]
        self._retained.append(Retained(kept, row))
        while self.tokens > self.tokens_max:
            self._retained.pop(0)

    def longest(self, tokens: Sequence[int]) -> tuple[Retained | None, int]:
        """The entry that shares the longest beginning with ``tokens``, and that length."""
        wanted = tuple(tokens)
        best, best_length = None, 0
        for entry in self._retained:
            length = common_length(entry.tokens, wanted)
            if length > best_length:
                best, best_length = entry, length
        if best is not None and best_length >= PREFIX_TOKENS_MIN:
            self._retained.remove(best)
            self._retained.append(best)
            return best, best_length
        return None, 0


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first elements agree. Halves instead of walking: slices compare at C speed."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
