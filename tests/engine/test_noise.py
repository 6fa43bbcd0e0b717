"""The noise of draws: its law, its key, and that it is the same everywhere. Seeds are fixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sllmd.engine.noise import TABLE_SIZE, VOCABULARY_MAX, gumbel_window

CPU = torch.device("cpu")
SIZE = 50_000


def test_the_table_is_standard_gumbel() -> None:
    """Kolmogorov and Smirnov: further than 1.63 / sqrt(n) once in a hundred tables."""
    halves = [gumbel_window(seed, 0, VOCABULARY_MAX, CPU) for seed in range(2)]
    for numbers in (np.sort(half.numpy().astype(float)) for half in halves):
        expected = np.exp(-np.exp(-numbers))
        found = np.arange(1, numbers.size + 1) / numbers.size
        assert np.abs(found - expected).max() < 1.63 / numbers.size**0.5
        assert np.isfinite(numbers).all()


def test_it_is_the_same_on_every_machine() -> None:
    """Nodes hand generations to each other: whoever changes these numbers changes every moved text."""
    first, last = gumbel_window(0, 0, 4, CPU), gumbel_window(2**63 - 1, 4095, 4, CPU)
    assert first.tolist() == pytest.approx([2.443222, 0.256375, 1.827015, 0.665674], abs=1e-5)
    assert last.tolist() == pytest.approx([2.794788, 0.532307, 0.032552, 0.302275], abs=1e-5)


def test_seed_and_index_are_its_key() -> None:
    keys = [(3, 4), (4, 3), (3, 5), (2, 4), (-1, 0), (1, 0), (2**63, 0)]
    windows = [tuple(gumbel_window(*key, 8, CPU).tolist()) for key in keys]
    assert len(set(windows)) == len(keys)
    assert torch.equal(gumbel_window(3, 4, SIZE, CPU), gumbel_window(3, 4, SIZE, CPU))


@pytest.mark.parametrize("keys", [((7, 0), (7, 1)), ((7, 1), (7, 2)), ((7, 0), (8, 0)), ((0, 1), (1, 0))])
def test_neighbours_have_nothing_in_common(keys: tuple[tuple[int, int], tuple[int, int]]) -> None:
    first, second = (gumbel_window(*key, SIZE, CPU) for key in keys)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 / SIZE**0.5


def test_windows_begin_everywhere() -> None:
    """Chi-square over 64 equal parts of the table; 103.4 is its 99.9th percentile at 63 degrees."""
    base = gumbel_window(0, 0, VOCABULARY_MAX, CPU).untyped_storage().data_ptr()
    starts = torch.tensor(
        [
            (gumbel_window(seed, index, SIZE, CPU).data_ptr() - base) / 4 / (TABLE_SIZE - SIZE)
            for seed in range(200)
            for index in range(100)
        ]
    )
    counts = torch.histc(starts, 64, 0, 1)
    assert counts.sum() == 20_000
    assert float(((counts - 312.5) ** 2 / 312.5).sum()) < 103.4
