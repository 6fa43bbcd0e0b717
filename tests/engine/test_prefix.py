"""Which retained rows are found, and which are forgotten."""

from __future__ import annotations

import pytest
import torch

from sllmd.engine.prefix import PREFIX_TOKENS_MIN, PrefixStore, common_length

ROW = [torch.zeros(1)]


@pytest.mark.parametrize("length", range(9))
def test_common_length(length: int) -> None:
    one = list(range(8))
    other = one[:length] + [99] * (8 - length)
    assert common_length(one, other) == length
    assert common_length(one, one[:length]) == length


def test_the_longest_beginning_is_found() -> None:
    store = PrefixStore(1000)
    store.put(range(20), ROW)
    store.put([*range(30), 5], ROW)
    entry, length = store.longest([*range(25), 7, 7])
    assert entry is not None
    assert (len(entry.tokens), length) == (31, 25)


def test_short_beginnings_are_not_worth_it() -> None:
    store = PrefixStore(1000)
    store.put(range(40), ROW)
    assert store.longest([*range(PREFIX_TOKENS_MIN - 1), 99])[0] is None
    assert store.longest([*range(PREFIX_TOKENS_MIN), 99])[1] == PREFIX_TOKENS_MIN


def test_wants() -> None:
    store = PrefixStore(50)
    assert not store.wants(range(PREFIX_TOKENS_MIN - 1))
    assert store.wants(range(50))
    assert not store.wants(range(51))


def test_the_least_recently_used_goes_first() -> None:
    store = PrefixStore(60)
    store.put(range(100, 120), ROW)
    store.put(range(200, 220), ROW)
    store.put(range(300, 320), ROW)
    assert store.longest(range(100, 120))[1] == 20
    store.put(range(400, 420), ROW)
    assert store.longest(range(200, 220))[0] is None
    assert store.longest(range(100, 120))[1] == 20
    assert store.tokens == 60


def test_a_longer_row_replaces_its_own_beginning() -> None:
    store = PrefixStore(1000)
    store.put(range(20), ROW)
    store.put(range(30), ROW)
    assert store.tokens == 30
