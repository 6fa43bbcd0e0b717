"""Slots, their growth, and the memory they hold."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from sllmd.engine.cache import RELEASE_TOKENS_MIN, RowStarts, SlotCache, ragged_float_mask, ragged_mask

HEADS, WIDTH = 2, 64


def filled(cache: SlotCache, slot: int, tokens: int, value: float) -> torch.Tensor:
    cache.begin(slot, [0], tokens)
    states = torch.full((1, HEADS, tokens, WIDTH), value)
    for layer in range(len(cache.layers)):
        cache.update(states, states + 1, layer)
    return states


def test_growing_keeps_what_is_there() -> None:
    cache = SlotCache(2, slots=1, capacity=8)
    filled(cache, 0, 8, 3.0)
    filled(cache, 2, 40, 5.0)
    assert cache.slots >= 3
    assert cache.capacity >= 40
    assert all(store.unique().tolist() == [3.0, 4.0] for store in cache.read_row(0, 8))


def test_a_row_moves_with_its_tokens_only() -> None:
    cache = SlotCache(1, slots=3, capacity=16)
    filled(cache, 0, 10, 3.0)
    filled(cache, 1, 10, 5.0)
    cache.copy_row(0, 1, 6)
    (moved,) = cache.read_row(1, 10)
    assert moved[0, :, :6].unique().tolist() == [3.0]
    assert moved[0, :, 6:].unique().tolist() == [5.0]
    cache.write_row(2, [moved], 10)
    assert torch.equal(cache.read_row(2, 10)[0], moved)


def test_rows_of_different_lengths_advance_together() -> None:
    cache = SlotCache(1, slots=3, capacity=16)
    filled(cache, 0, 2, 1.0)
    filled(cache, 1, 5, 2.0)
    cache.begin(0, [2, 5], 1)
    step = torch.stack([torch.full((HEADS, 1, WIDTH), 7.0), torch.full((HEADS, 1, WIDTH), 8.0)])
    keys, values = cache.update(step, step + 1, 0)
    assert keys.shape == (2, HEADS, 6, WIDTH)
    assert keys[0, 0, :3, 0].tolist() == [1.0, 1.0, 7.0]
    assert keys[1, 0, :, 0].tolist() == [2.0] * 5 + [8.0]
    assert values[1, 1, -1, 0] == 9.0
    assert not keys.isnan().any()


def test_keys_and_values_of_different_widths() -> None:
    cache = SlotCache(1, slots=1, capacity=8)
    cache.begin(0, [0], 3)
    keys, values = cache.update(torch.ones(1, 2, 3, 6), torch.full((1, 2, 3, 4), 2.0), 0)
    assert (keys.shape, values.shape) == ((1, 2, 3, 6), (1, 2, 3, 4))
    cache.copy_row(0, 1, 3)
    assert [store.shape for store in cache.read_row(1, 3)] == [(2, 3, 6), (2, 3, 4)]


@pytest.mark.parametrize(
    ("starts", "length", "span", "window"),
    [([0], 5, 5, None), ([3], 2, 5, None), ([0, 3, 1], 1, 4, None), ([2, 6], 1, 7, 3), ([0], 6, 6, 3)],
)
def test_masks_follow_the_models_rule(starts: list[int], length: int, span: int, window: int | None) -> None:
    def rule(_row: int, _head: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen = key <= query
        return seen if window is None else seen & (key > query - window)

    offset = RowStarts(torch.tensor(starts), len(set(starts)) == 1)
    arguments = {
        "batch_size": len(starts),
        "q_length": length,
        "kv_length": span,
        "q_offset": offset,
        "mask_function": rule,
        "local_size": window,
    }
    expected = torch.tensor(
        [
            [
                [key <= start + i and (window is None or key > start + i - window) for key in range(span)]
                for i in range(length)
            ]
            for start in starts
        ]
    )[:, None]
    mask = ragged_mask(**arguments, allow_is_causal_skip=False)
    assert mask is not None
    assert torch.equal(mask, expected)
    numbers = ragged_float_mask(**arguments, dtype=torch.float32)
    assert torch.equal(numbers == 0, expected)
    skipped = ragged_mask(**arguments)
    if skipped is None:
        causal = torch.ones(length, span, dtype=torch.bool).tril(span - length)
        assert all(torch.equal(rows[0], causal) for rows in expected)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_memory_is_committed_when_written_and_given_back() -> None:
    tokens = 20_000
    row_bytes = 2 * HEADS * tokens * WIDTH * 4
    before = _resident_bytes()
    cache = SlotCache(1, slots=64, capacity=tokens)
    cache.begin(0, [0], 1)
    cache.update(torch.ones(1, HEADS, 1, WIDTH), torch.ones(1, HEADS, 1, WIDTH), 0)
    assert _resident_bytes() - before < row_bytes
    filled(cache, 0, tokens, 1.0)
    filled(cache, 1, tokens, 2.0)
    held = _resident_bytes()
    cache.release(0, tokens)
    assert held - _resident_bytes() > 0.9 * row_bytes
    assert cache.read_row(1, tokens)[0].unique().tolist() == [2.0, 3.0]
    assert cache.read_row(0, tokens)[0].abs().sum() < row_bytes / 4 * 0.01


def test_short_rows_keep_their_memory() -> None:
    cache = SlotCache(1, slots=1, capacity=2 * RELEASE_TOKENS_MIN)
    filled(cache, 0, RELEASE_TOKENS_MIN, 1.0)
    cache.release(0, RELEASE_TOKENS_MIN - 1)
    assert cache.read_row(0, RELEASE_TOKENS_MIN)[0].min() == 1.0
