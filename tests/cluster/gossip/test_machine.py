"""Leaving, changes of meta, forgetting, rounds of news."""

import math

import pytest

from sllmd.cluster.gossip.events import ChangeMeta, Gone, Leave, MemberForgotten, Send
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import Alive, Dead, Left, Ping, Status, Suspect, pack_packet
from sllmd.core.ids import NodeId
from tests.cluster.gossip.seat import ME, Seat, alive, only, sent

A, B = NodeId("a"), NodeId("b")


def test_who_leaves_says_so_until_enough_have_heard() -> None:
    seat = Seat("abcde")
    seat.handle(Leave(0.0))
    assert seat.belief("me") == (Status.LEFT, 0)
    actions = seat.run(3.5)
    assert only(actions, Gone) == [Gone()]
    assert len(sent(actions, Left)) == 12
    assert {claim for _, claim in sent(actions, Left)} == {Left(ME, 0)}
    assert seat.machine.deadline_seconds() == math.inf
    assert seat.hear(Ping(1, A, ME)) == []


def test_who_leaves_does_not_argue() -> None:
    seat = Seat("ab")
    seat.handle(Leave(0.0))
    seat.hear(Suspect(ME, 0, A), alive("me", 7))
    assert seat.machine.me.incarnation == 0


def test_alone_one_leaves_at_once() -> None:
    assert only(Seat().handle(Leave(0.0)), Gone) == [Gone()]


def test_leaving_is_not_held_up_by_silence() -> None:
    seat = Seat("ab", settings={"gossip_seconds": 10})
    seat.handle(Leave(0.0))
    assert only(seat.run(2.9), Gone) == []
    assert only(seat.run(3.1), Gone) == [Gone()]


def test_a_change_of_meta_is_told_at_once() -> None:
    seat = Seat("abc")
    for number in (1, 2):
        seat.handle(ChangeMeta(0.0, bytes([number])))
    assert seat.machine.me == alive("me", 2, meta=b"\x02")
    assert seat.news == [alive("me", 2, meta=b"\x02")]


def test_the_same_meta_is_no_change() -> None:
    seat = Seat("abc")
    seat.handle(ChangeMeta(0.0, b""))
    assert seat.machine.me.incarnation == 0


def test_a_refutation_keeps_the_newest_meta() -> None:
    seat = Seat("abc")
    seat.handle(ChangeMeta(0.0, b"new"))
    seat.hear(Suspect(ME, 1, A))
    assert seat.machine.me == alive("me", 2, meta=b"new")


@pytest.mark.parametrize(("end", "kept_seconds"), [(Left(A, 0), 3600), (Dead(A, 0, B), 10_000)])
def test_who_is_long_gone_is_forgotten(end: Left | Dead, kept_seconds: float) -> None:
    settings = {"dead_kept_seconds": 10_000, "probe_seconds": 1000, "dead_ping_seconds": 1000}
    seat = Seat("ab", settings=settings)
    seat.hear(end)
    assert only(seat.run(kept_seconds - 1), MemberForgotten) == []
    (forgotten,) = only(seat.run(kept_seconds + 1), MemberForgotten)
    assert forgotten.member.node == A
    assert seat.status("a") is None
    seat.hear(alive("a", 1))
    assert seat.status("a") is Status.ALIVE


def test_who_came_back_is_not_forgotten() -> None:
    seat = Seat("ab", settings={"probe_seconds": 1000, "suspicion_multiplier": 6})
    seat.hear(Left(A, 0))
    seat.run(100)
    seat.hear(alive("a", 1))
    seat.run(200)
    seat.hear(Left(A, 1))
    assert only(seat.run(3650), MemberForgotten) == []
    assert len(only(seat.run(3801), MemberForgotten)) == 1


def test_a_table_from_before_is_believed_until_it_proves_wrong() -> None:
    known = {
        NodeId(name): Member(alive(name), 0, status, 0.0)
        for name, status in (("a", Status.ALIVE), ("b", Status.SUSPECT), ("c", Status.DEAD))
    }
    seat = Seat(known=known)
    seat.run(30)
    assert seat.status("b") is Status.DEAD
    assert sent(seat.actions, Ping)[0][0] in ("a:1", "b:1", "c:1")


def test_the_first_news_goes_out_at_once_and_then_in_rounds() -> None:
    seat = Seat("abcdefghij")
    seat.hear(alive("x"))
    assert len(sent(seat.run(0.0), Alive)) == 3
    assert len(sent(seat.run(0.19), Alive)) <= 1  # a probe may carry one
    assert len(sent(seat.run(0.21), Alive)) >= 3


def test_nothing_is_said_when_there_is_nothing_to_say() -> None:
    seat = Seat("abcdefghij", settings={"probe_seconds": 1000})
    assert only(seat.run(20), Send) == []


def test_news_is_told_to_the_freshly_dead_too() -> None:
    seat = Seat("a", settings={"probe_seconds": 1000, "dead_ping_seconds": 1000})
    seat.hear(Dead(A, 0, B), alive("x"))
    assert "a:1" in {address for address, _ in sent(seat.run(2), Dead)}


def test_no_packet_is_too_large() -> None:
    seat = Seat(overhead_bytes=49)
    for number in range(500):
        seat.hear(alive(f"n{number}", name="x" * (number % 100 + 1), meta=bytes(number)))
    for action in only(seat.run(20), Send):
        assert len(pack_packet(action.messages)) + 49 <= 1400
    assert len(sent(seat.actions, Alive)) > 500


def test_the_same_seed_does_the_same() -> None:
    def life(seed: int) -> list[object]:
        seat = Seat("abcdefghij", seed=seed)
        seat.run(30)
        return list(seat.actions)

    assert life(1) == life(1)
    assert life(1) != life(2)
