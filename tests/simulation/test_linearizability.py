"""The checker accepts what can be explained and rejects what cannot."""

from __future__ import annotations

import math

from tests.simulation.linearizability import Operation, explain
from tests.simulation.world import play


def operation(kind: str, invoked: float, returned: float, value: object, **more: object) -> Operation:
    return Operation("k", kind, invoked, returned, value, **more)  # type: ignore[arg-type]


def test_a_read_after_a_write_sees_it() -> None:
    write = operation("write", 0, 1, "x")
    assert explain([write, operation("read", 2, 3, "x")]) is None
    assert explain([write, operation("read", 2, 3, None)]) is not None


def test_overlapping_operations_may_go_either_way() -> None:
    write = operation("write", 0, 5, "x")
    assert explain([write, operation("read", 1, 2, None)]) is None
    assert explain([write, operation("read", 1, 2, "x")]) is None
    assert explain([write, operation("read", 1, 2, "x"), operation("read", 3, 4, None)]) is not None


def test_a_write_without_an_answer_may_come_late_or_never() -> None:
    lost = operation("write", 0, math.inf, "x")
    assert explain([lost, operation("read", 1, 2, None), operation("read", 3, 4, "x")]) is None
    assert explain([lost, operation("read", 1, 2, "x"), operation("read", 3, 4, None)]) is not None


def test_compare_and_set_is_held_to_its_answer() -> None:
    write = operation("write", 0, 1, "x")
    won = operation("cas", 2, 3, "y", expected="x")
    denied = operation("cas", 2, 3, "y", expected="x", succeeded=False)
    assert explain([write, won, operation("read", 4, 5, "y")]) is None
    assert explain([write, denied]) is not None


def test_a_planted_stale_read_in_a_real_history_is_rejected() -> None:
    history = play(1).history
    assert len(history) > 100
    late = max(one.returned for one in history)
    first = next(one for one in history if one.kind == "write")
    stale = Operation(first.key, "read", late + 1, late + 2, first.value)
    assert explain(history) is None
    assert explain([*history, stale]) is not None
