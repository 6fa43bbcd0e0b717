"""The chance in a draw: one fixed table of standard Gumbel noise, of which every draw reads a window.

The largest of ``logits / temperature + noise`` is a draw from their softmax (the Gumbel-max trick). Where a
window begins depends on seed and index alone, so a draw can be told again anywhere. The table is the same on
every machine, since nodes hand generations to each other: splitmix64 of a counter, and no library's stream.

Being finite, it meets a probability p within a relative 1 / sqrt(4e6 p): what should come once in 10,000
draws comes so within 5 %. Two draws with the same noise are one pair in some four million.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

TABLE_SIZE = 1 << 22
"""Numbers, 16 MB of them, made in some 25 ms; the zygote makes them, so that its workers share the pages."""
VOCABULARY_MAX = TABLE_SIZE // 2
"""Tokens a window may have, so that there are at least as many windows."""
_BLOCK = 1 << 15
"""Numbers made at once, so that what is in between stays in the cache."""
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def gumbel_window(seed: int, index: int, size: int, device: torch.device) -> torch.Tensor:
    """``size`` numbers, float32, that depend on nothing but these; a view of the table, not to be changed.

    ``size`` is at most ``VOCABULARY_MAX``.
    """
    start = _mix(_mix(seed & _MASK) ^ (index & _MASK)) % (TABLE_SIZE - size)
    return _table(device)[start : start + size]


def _mix(value: int) -> int:
    """The next number of splitmix64 from state ``value``."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix_all(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """``_mix`` of many; uint64 wraps by itself."""
    values = states + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _table(device: torch.device) -> torch.Tensor:
    """The table on ``device``. numpy makes it, with one thread: a zygote may not have more."""
    if device.type != "cpu":
        return _table(torch.device("cpu")).to(device)
    table = np.empty(TABLE_SIZE, np.float32)
    for start in range(0, TABLE_SIZE, _BLOCK):
        counters = np.arange(start, start + _BLOCK, dtype=np.uint64)
        words = _mix_all(counters * np.uint64(_GOLDEN))
        quantiles = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
        table[start : start + _BLOCK] = -np.log(-np.log(quantiles))
    return torch.from_numpy(table)
