"""One move, told as events and the actions that they bring."""

from __future__ import annotations

import pytest

from sllmd.migration.mover import (
    Commit,
    Ended,
    FailOver,
    Held,
    Late,
    Move,
    Phase,
    Release,
    Resumed,
    SourceLost,
    TargetFailed,
    Warm,
    Warmed,
)
from sllmd.migration.settings import MigrationSettings

SETTINGS = MigrationSettings(gap_tokens=4, rounds_max=3, remaining_tokens_min=4)


def begun(*, tokens: int = 10, tokens_max: int = 1000) -> Move:
    return Move(SETTINGS, tokens=tokens, tokens_max=tokens_max, now_seconds=0.0)


def warming(**changes: int) -> Move:
    move = begun(**changes)
    assert move.handle(Held(10, 0.0)) == [Warm()]
    return move


def test_rounds_follow_until_the_gap_is_small() -> None:
    move = begun()
    story = [(Held(12, 1.0), Warm()), (Warmed(40, 2.0), Warm()), (Warmed(43, 2.2), Commit())]
    assert [move.handle(event) for event, _ in story] == [[action] for _, action in story]
    assert (move.phase, move.rounds) == (Phase.COMMITTED, 2)


def test_a_gap_that_no_longer_shrinks_is_as_good_as_it_gets() -> None:
    move = warming()
    assert move.handle(Warmed(30, 1.0)) == [Warm()]
    assert move.handle(Warmed(50, 2.0)) == [Commit()]


def test_rounds_are_bounded() -> None:
    move = warming()
    assert move.handle(Warmed(60, 1.0)) == [Warm()]
    assert move.handle(Warmed(100, 2.0)) == [Warm()]
    assert move.handle(Warmed(130, 3.0)) == [Commit()]


def test_what_is_nearly_over_stays() -> None:
    for move, event in (
        (begun(tokens_max=14), Held(10, 0.0)),
        (warming(tokens_max=30), Warmed(26, 1.0)),
        (warming(tokens_max=60), Warmed(40, 1.0)),  # 20 more tokens take 0.67 s, a round takes 1 s
    ):
        (action,) = move.handle(event)
        assert isinstance(action, Release)
        assert action.called_off
        assert move.phase is Phase.OVER


@pytest.mark.parametrize("event", [TargetFailed("no"), Late(), Ended("it finished")])
@pytest.mark.parametrize("make", [begun, warming])
def test_what_ends_a_move_lets_the_target_go_and_leaves_the_source(make, event) -> None:
    move = make()
    (action,) = move.handle(event)
    assert isinstance(action, Release)
    assert action.called_off is isinstance(event, Ended)
    assert move.handle(Warmed(20, 1.0)) == []


def test_a_lost_source_makes_the_warming_target_the_place() -> None:
    assert warming().handle(SourceLost("killed")) == [Commit()]


def test_a_source_lost_before_is_looked_for_elsewhere_while_the_target_starts() -> None:
    for ready_first, actions in (
        (Held(10, 1.0), [Commit()]),
        (Resumed(), [Release("it runs elsewhere already", True)]),
        (TargetFailed("no"), [Release("no")]),
    ):
        move = begun()
        assert move.handle(SourceLost("killed")) == [FailOver("killed")]
        assert move.handle(ready_first) == actions


@pytest.mark.parametrize(
    "event", [Held(1, 1), Warmed(1, 1), SourceLost(""), Resumed(), TargetFailed(""), Ended(""), Late()]
)
def test_nothing_is_heard_after_the_switch(event) -> None:
    move = warming()
    move.handle(Warmed(11, 1.0))
    assert (move.phase, move.handle(event)) == (Phase.COMMITTED, [])


def test_resumed_means_nothing_to_a_move_whose_source_lives() -> None:
    move = begun()
    assert move.handle(Resumed()) == []
    assert move.phase is Phase.HOLDING
