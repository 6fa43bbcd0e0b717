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


def test_a_lost_update_is_rejected() -> None:
    """Two compare-and-sets of one value cannot both have won."""
    write = operation("write", 0, 1, "x")
    one = operation("cas", 2, 5, "y", expected="x")
    other = operation("cas", 3, 6, "z", expected="x")
    assert explain([write, one]) is None
    assert explain([write, one, other]) is not None
    assert explain([write, one, operation("read", 7, 8, "x")]) is not None


def test_many_changes_without_an_answer_are_searched_soon() -> None:
    """Most were never seen again; some were, long after."""
    history: list[Operation] = []
    for number in range(300):
        history.append(operation("write", number, math.inf, f"lost{number}"))
        history.append(operation("write", number + 0.1, number + 0.2, f"w{number}"))
        seen = f"lost{number - 20}" if number % 50 == 30 else f"w{number}"
        history.append(operation("read", number + 0.3, number + 0.4, seen))
    assert explain(history) is None
    twice = [operation("read", 400, 401, "lost10"), operation("read", 402, 403, "w299")]
    assert explain([*history, *twice]) is not None


def test_an_open_change_that_was_compared_with_took_effect() -> None:
    history = [
        operation("write", 0, math.inf, "x"),
        operation("cas", 2, 3, "y", expected="x"),
        operation("read", 4, 5, "y"),
    ]
    assert explain(history) is None
    assert explain([*history, operation("read", 6, 7, "x")]) is not None


def test_a_planted_stale_read_in_a_real_history_is_rejected() -> None:
    history = play(1).history
    assert len(history) > 100
    late = max(one.returned for one in history)
    first = next(one for one in history if one.kind == "write")
    stale = Operation(first.key, "read", late + 1, late + 2, first.value)
    assert explain(history) is None
    assert explain([*history, stale]) is not None
