"""Whole tables: joining, catching up, and who is not let in."""

import pytest

from sllmd.cluster.gossip.events import Answered, Ask, AskFailed, Incompatible, Join, Joined, JoinFailed
from sllmd.cluster.gossip.messages import Conflict, Exchange, Fact, Refusal, Status, StreamMessage, Suspect
from sllmd.core.ids import NodeId
from tests.cluster.gossip.seat import ME, Seat, alive, changes, only

A, X = NodeId("a"), NodeId("x")


def facts(*rows: tuple[str, Status]) -> tuple[Fact, ...]:
    return tuple(Fact(alive(node), 0, status) for node, status in rows)


def join(seat: Seat, answer: StreamMessage) -> list[object]:
    (ask,) = only(seat.handle(Join(seat.now, "a:1")), Ask)
    assert ask.message == Exchange(seat.machine.me, True, ())
    return list(seat.handle(Answered(seat.now, ask.ask_id, answer)))


def test_joining_takes_over_a_table_and_tells_ones_own() -> None:
    seat = Seat()
    rows = facts(("b", Status.ALIVE), ("c", Status.SUSPECT), ("d", Status.DEAD), ("e", Status.LEFT))
    assert Joined("a:1") in join(seat, Exchange(alive("a"), False, rows))
    beliefs = {node: seat.status(node) for node in "abcde"}
    assert beliefs == {"a": Status.ALIVE, "b": Status.ALIVE, "c": Status.SUSPECT, "d": None, "e": None}


def test_who_is_asked_learns_the_joiner_and_answers_with_its_table() -> None:
    seat = Seat("ab")
    answer = seat.ask(Exchange(alive("x"), True, ()))
    assert isinstance(answer, Exchange)
    assert answer.claim == seat.machine.me
    assert {fact.claim.node for fact in answer.facts} == {"a", "b"}, "the asker needs not hear of itself"
    assert seat.status("x") is Status.ALIVE
    assert alive("x") in seat.news


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (Status.ALIVE, Status.ALIVE),
        (Status.SUSPECT, Status.SUSPECT),
        (Status.DEAD, Status.SUSPECT),
        (Status.LEFT, Status.LEFT),
    ],
)
def test_another_ones_dead_are_only_suspected_here(theirs: Status, ours: Status) -> None:
    seat = Seat("ab")
    seat.ask(Exchange(alive("b"), False, facts(("a", theirs))))
    assert seat.status("a") is ours


def test_an_equal_table_changes_nothing() -> None:
    seat = Seat("abc")
    seat.machine.flush()
    seat.ask(Exchange(alive("b"), False, facts(("a", Status.ALIVE), ("c", Status.ALIVE))))
    assert changes(seat.actions) == []
    assert seat.news == []


def test_what_is_said_of_this_node_in_a_table_is_refuted() -> None:
    seat = Seat("ab")
    seat.ask(Exchange(alive("b"), False, (Fact(alive("me"), 3, Status.DEAD),)))
    assert seat.belief("me") == (Status.ALIVE, 4)


def test_a_joiner_with_another_version_is_told_why() -> None:
    seat = Seat("ab")
    answer = seat.ask(Exchange(alive("x", protocol_min=2, protocol_max=3), True, facts(("y", Status.ALIVE))))
    assert isinstance(answer, Refusal)
    assert "speaks gossip 2 to 3" in answer.reason
    assert seat.status("x") is seat.status("y") is None
    assert len(only(seat.actions, Incompatible)) == 1


def test_a_refused_joiner_knows_that_trying_again_is_in_vain() -> None:
    assert join(Seat(), Refusal("too old")) == [JoinFailed("a:1", "too old", refused=True)]


def test_the_asked_one_may_be_the_one_that_is_incompatible() -> None:
    seat = Seat()
    (failed,) = join(
        seat, Exchange(alive("a", protocol_min=7, protocol_max=9), False, facts(("b", Status.ALIVE)))
    )
    assert isinstance(failed, JoinFailed)
    assert failed.refused
    assert seat.status("b") is None


def test_joining_oneself_is_no_joining() -> None:
    seat = Seat()
    assert join(seat, Exchange(seat.machine.me, False, ())) == [
        JoinFailed("a:1", "that is this node itself", refused=False)
    ]


def test_nobody_there() -> None:
    seat = Seat()
    (ask,) = only(seat.handle(Join(0.0, "a:1")), Ask)
    failed = seat.handle(AskFailed(0.0, ask.ask_id, "refused by the system"))
    assert failed == [JoinFailed("a:1", "refused by the system", refused=False)]


def test_a_late_answer_means_nothing() -> None:
    seat = Seat()
    (ask,) = only(seat.handle(Join(0.0, "a:1")), Ask)
    seat.handle(AskFailed(0.0, ask.ask_id, "no answer in time"))
    assert seat.handle(Answered(0.0, ask.ask_id, Exchange(alive("a"), False, ()))) == []


def test_the_clone_of_a_running_node_is_not_let_in_by_it() -> None:
    seat = Seat("ab")
    assert seat.ask(Exchange(alive("me", address="clone:1"), True, ())) == Conflict(ME, "me:1")


def test_tables_are_exchanged_from_time_to_time_more_rarely_in_large_clusters() -> None:
    def exchanges(members: int) -> int:
        seat = Seat(answering=[f"n{number}" for number in range(members)])
        for number in range(members):
            seat.hear(alive(f"n{number}"))
        asks = only(seat.run(300), Ask)
        return sum(isinstance(ask.message, Exchange) for ask in asks)

    assert 9 <= exchanges(10) <= 11
    assert 3 <= exchanges(100) <= 5


def test_a_table_that_is_too_large_is_not_read() -> None:
    seat = Seat("ab", settings={"exchange_members_max": 2})
    rows = facts(("x", Status.ALIVE), ("y", Status.ALIVE), ("z", Status.ALIVE))
    seat.ask(Exchange(alive("b"), False, rows))
    assert seat.status("x") is None


def test_a_suspicion_from_a_table_names_who_sent_it() -> None:
    seat = Seat("ab")
    seat.ask(Exchange(alive("b"), False, facts(("a", Status.SUSPECT))))
    assert seat.machine.suspected_by(A) == ("b",)
    assert Suspect(A, 0, NodeId("b")) in seat.news
