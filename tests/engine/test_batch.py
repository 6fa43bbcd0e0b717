"""Which rows run, where, and who gives way."""

from __future__ import annotations

import random

from sllmd.engine.batch import RESERVE_TOKENS, Batch, Move, Row
from tests.engine.driving import state


def row(name: str, prompt_tokens: int = 4, output_tokens: int = 0) -> Row:
    return Row(state(name, range(prompt_tokens), output=range(output_tokens)))


def running(batch: Batch, *rows: Row) -> None:
    """Admit and prefill ``rows``."""
    for one in rows:
        batch.add(one)
    batch.admit()
    while (chunk := batch.next_chunk(1000)) is not None:
        chunk.row.cached = chunk.stop
        batch.begin_decoding(chunk.row)


def new_batch(batch_max: int = 4, cache_tokens: int = 1000) -> Batch:
    return Batch(batch_max=batch_max, cache_tokens=cache_tokens, chunk_tokens=8)


def test_tokens_of_prompt_and_output() -> None:
    one = Row(state("a", [10, 11, 12], output=[20, 21]))
    cases = {
        (0, 3): [10, 11, 12],
        (1, 2): [11],
        (0, 5): [10, 11, 12, 20, 21],
        (2, 4): [12, 20],
        (3, 5): [20, 21],
        (4, 5): [21],
        (5, 5): [],
    }
    for (start, stop), expected in cases.items():
        assert one.tokens(start, stop) == expected


def test_first_come_first_served_up_to_the_batch() -> None:
    batch = new_batch(batch_max=2)
    rows = [row(name) for name in "abc"]
    for one in rows:
        batch.add(one)
    assert batch.admit() == rows[:2]
    assert list(batch.waiting) == rows[2:]


def test_admission_leaves_room_for_output() -> None:
    batch = new_batch(cache_tokens=10 + 10 + RESERVE_TOKENS - 1)
    one, other = row("a", 10), row("b", 10)
    batch.add(one)
    batch.add(other)
    assert batch.admit() == [one]
    assert batch.admit() == []
    batch.remove(one)
    assert batch.admit() == [other]


def test_admission_leaves_room_for_the_output_of_all_who_run() -> None:
    batch = new_batch(cache_tokens=3 * 10 + 3 * RESERVE_TOKENS - 1)
    rows = [row(name, 10) for name in "abc"]
    for one in rows:
        batch.add(one)
    assert batch.admit() == rows[:2]


def test_whoever_leaves_does_not_change_the_order_of_prompts() -> None:
    batch = new_batch()
    a, b, c, d = (row(name) for name in "abcd")
    running(batch, a)
    for one in (b, c, d):
        batch.add(one)
    batch.admit()
    b.cached = 2
    assert batch.remove(a) == [Move(1, 0, 2)]
    assert batch.rows == [b, c, d]
    assert batch.remove(b) == []
    assert batch.rows == [c, d]


def test_a_row_larger_than_the_reserve_runs_alone() -> None:
    batch = new_batch(cache_tokens=12)
    batch.add(row("a", 11))
    assert len(batch.admit()) == 1


def test_prompts_go_in_by_chunks_in_order() -> None:
    batch = new_batch()
    long, short = row("long", 11), row("short", 3)
    batch.add(long)
    batch.add(short)
    batch.admit()
    chunk = batch.next_chunk(8)
    assert chunk is not None
    assert (chunk.row, chunk.slot, chunk.start, chunk.stop) == (long, 0, 0, 8)
    long.cached = 8
    chunk = batch.next_chunk(8)
    assert chunk is not None
    assert (chunk.start, chunk.stop) == (8, 11)
    long.cached = 11
    batch.begin_decoding(long)
    chunk = batch.next_chunk(5)
    assert chunk is not None
    assert (chunk.row, chunk.slot, chunk.stop) == (short, 1, 3)
    assert batch.next_chunk(0) is None


def test_a_gap_among_decoding_rows_is_closed_from_both_groups() -> None:
    batch = new_batch()
    a, b, c = row("a"), row("b"), row("c")
    running(batch, a, b)
    batch.add(c)
    batch.admit()
    c.cached = 2
    assert batch.remove(a) == [Move(1, 0, 4), Move(2, 1, 2)]
    assert batch.rows == [b, c]
    assert batch.decoding == 1


def test_the_last_row_leaves_without_moves() -> None:
    batch = new_batch()
    a, b = row("a"), row("b")
    running(batch, a, b)
    assert batch.remove(b) == []
    assert batch.remove(a) == []
    assert (batch.rows, batch.decoding) == ([], 0)


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    batch = new_batch(cache_tokens=40)
    a, b, c = row("a", 4), row("b", 4), row("c", 4)
    running(batch, a)
    running(batch, b)
    batch.add(c)
    a.state.output_ids += range(30)
    b.state.output_ids += range(8)
    assert batch.overfull() is b
    batch.remove(b)
    batch.queue_again(b)
    assert list(batch.waiting) == [b, c]
    assert (b.cached, b.started) == (0, False)
    assert batch.overfull() is None


def test_the_last_running_row_is_never_preempted() -> None:
    batch = new_batch(cache_tokens=10)
    a = row("a", 4)
    running(batch, a)
    a.state.output_ids += range(50)
    assert batch.overfull() is None


def test_find_knows_waiting_and_running_rows_but_not_warm_ones() -> None:
    batch = new_batch(batch_max=1)
    a, b = row("a"), row("b")
    warm = Row(state("w", [1, 2]), warm_only=True)
    running(batch, a)
    batch.add(b)
    batch.add(warm)
    assert batch.find("a") is a
    assert batch.find("b") is b
    assert batch.find("w") is None
    assert batch.find("x") is None
    assert batch.remove(b) == []
    assert batch.find("b") is None


def test_moves_keep_slots_and_contents_together() -> None:
    """Random arrivals and departures: following the moves, each slot holds what its row says."""
    chance = random.Random(7)
    batch = new_batch(batch_max=6)
    slots: dict[int, str] = {}
    for number in range(400):
        if chance.random() < 0.5:
            batch.add(row(f"{number}", chance.randint(1, 20)))
            for one in batch.admit():
                slots[batch.rows.index(one)] = one.state.generation_id
                one.cached = 1
        elif batch.rows:
            for move in batch.remove(chance.choice(batch.rows)):
                slots[move.target] = slots[move.source]
        chunk = batch.next_chunk(8)
        if chunk is not None and chance.random() < 0.6:
            batch.begin_decoding(chunk.row)
        for slot, one in enumerate(batch.rows):
            assert slots[slot] == one.state.generation_id
