"""Probes and what follows from silence."""

import pytest

from sllmd.cluster.gossip.events import Answered, Ask, AskFailed, Tick
from sllmd.cluster.gossip.messages import Ack, Alive, Dead, Nack, Ping, PingRequest, Status, Suspect
from sllmd.core.ids import NodeId
from tests.cluster.gossip.seat import ME, Seat, alive, only, sent

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def test_everybody_is_pinged_in_turn() -> None:
    seat = Seat("abc", answering="abc")
    seat.run(9)
    pings = sent(seat.actions, Ping)
    assert len(pings) == 9
    assert {(address, ping.target) for address, ping in pings} == {("a:1", "a"), ("b:1", "b"), ("c:1", "c")}


def test_an_answer_in_time_asks_nobody_else() -> None:
    seat = Seat("abcd")
    _, ping = seat.run_until_sent(Ping)
    seat.hear(Ack(ping.seq, ping.target))
    assert sent(seat.run(seat.now + 0.99), PingRequest) == []
    assert seat.machine.suspicions == {}


def silent_probe(seat: Seat) -> tuple[Ping, list[tuple[str, PingRequest]], Ask]:
    """A probe without an answer, up to where others are asked."""
    _, ping = seat.run_until_sent(Ping)
    actions = seat.run(seat.now + 0.5)
    (ask,) = only(actions, Ask)
    return ping, sent(actions, PingRequest), ask


def test_without_an_answer_others_and_a_stream_are_tried() -> None:
    seat = Seat("abcdef")
    ping, requests, ask = silent_probe(seat)
    assert len(requests) == 3
    assert {request.target for _, request in requests} == {ping.target}
    assert {request.address for _, request in requests} == {f"{ping.target}:1"}
    assert f"{ping.target}:1" not in {address for address, _ in requests}
    assert (ask.address, ask.message) == (f"{ping.target}:1", Ping(ping.seq, ME, ping.target))
    assert ask.timeout_seconds == pytest.approx(0.5)


def test_one_answer_of_any_kind_is_enough() -> None:
    for way in ("late", "others", "stream"):
        seat = Seat("abcdef")
        ping, _, ask = silent_probe(seat)
        seat.now += 0.3
        if way == "stream":
            seat.handle(Answered(seat.now, ask.ask_id, Ack(ping.seq, ping.target)))
        else:
            seat.hear(Ack(ping.seq, ping.target), address="a:1" if way == "late" else "b:1")
        seat.run(seat.now + 0.3)
        assert ping.target not in seat.machine.suspicions, way
        assert seat.machine.health.score == 0


@pytest.mark.parametrize("answer", ["another probe's", "another member's"])
def test_an_answer_to_something_else_counts_for_nothing(answer: str) -> None:
    seat = Seat("abcdef")
    ping, _, _ = silent_probe(seat)
    other = A if ping.target != A else B
    seat.hear(Ack(ping.seq + 77, ping.target) if answer == "another probe's" else Ack(ping.seq, other))
    seat.run(seat.now + 0.6)
    assert ping.target in seat.machine.suspicions


def test_no_answer_at_all_makes_a_suspect_and_everybody_hears_who_suspects_it() -> None:
    seat = Seat("abcdef")
    ping, _, ask = silent_probe(seat)
    seat.handle(AskFailed(seat.now, ask.ask_id, "refused"))
    actions = seat.run(seat.now + 0.5)
    assert seat.belief(ping.target) == (Status.SUSPECT, 0)
    assert seat.machine.suspected_by(ping.target) == (ME,)
    assert Suspect(ping.target, 0, ME) in [claim for _, claim in sent(actions, Suspect)]


@pytest.mark.parametrize(("nacks", "score"), [(3, 0), (2, 1), (0, 3)])
def test_missing_nacks_point_at_this_node(nacks: int, score: int) -> None:
    seat = Seat("abcdef")
    ping, requests, _ = silent_probe(seat)
    for address, _ in requests[:nacks]:
        seat.hear(Nack(ping.seq, NodeId(address[0])), address=address)
    seat.run(seat.now + 0.5)
    assert seat.machine.health.score == score


def test_alone_with_a_silent_member_it_may_be_either() -> None:
    seat = Seat("a")
    silent_probe(seat)
    seat.run(seat.now + 0.5)
    assert seat.machine.health.score == 1
    assert seat.status("a") is Status.SUSPECT


def test_a_node_in_bad_health_waits_longer() -> None:
    seat = Seat("abcdef")
    seat.hear(Suspect(ME, 0, A))
    seat.hear(Suspect(ME, 1, A))
    seat.run_until_sent(Ping)
    assert sent(seat.run(seat.now + 1.4), PingRequest) == []
    assert len(sent(seat.run(seat.now + 0.2), PingRequest)) == 3


# --- from suspect to dead ---


def test_a_suspect_that_stays_silent_dies_in_time() -> None:
    """Of eleven members: after 25 s if one alone suspects it, 11.9 s if two do, 4.2 s if three do."""
    seat = Seat("abcdefghij", answering="bcdefghij")
    seat.hear(Suspect(A, 0, B))
    seat.run(11.5)
    assert seat.status("a") is Status.SUSPECT
    seat.run(25.1)
    assert seat.status("a") is Status.DEAD


def test_confirmations_are_told_on_and_shorten_the_wait() -> None:
    seat = Seat("abcdefghij", answering="bcdefghij")
    for source in (B, C, NodeId("d")):
        seat.hear(Suspect(A, 0, source))
    assert seat.machine.suspected_by(A) == (B, C, "d")
    assert seat.news == [Suspect(A, 0, NodeId("d"))]
    seat.run(4.1)
    assert seat.status("a") is Status.SUSPECT
    seat.run(4.3)
    assert seat.status("a") is Status.DEAD


def test_the_last_call_is_a_probe_that_carries_the_doubt() -> None:
    seat = Seat("abcdefghij", answering="bcdefghij")
    for source in (B, C, NodeId("d")):
        seat.hear(Suspect(A, 0, source))
    seat.news  # noqa: B018 - nothing else is told with it
    actions = seat.run(3.2)
    assert ("a:1", Ping) in {(address, type(ping)) for address, ping in sent(actions, Ping)}
    assert ("a:1", Suspect(A, 0, ME)) in sent(actions, Suspect)


def test_who_answers_the_last_call_lives_on_and_is_asked_for_its_word() -> None:
    seat = Seat("abcdefghij", answering="bcdefghij")
    for source in (B, C, NodeId("d")):
        seat.hear(Suspect(A, 0, source))
    calls = [ping for address, ping in sent(seat.run(3.3), Ping) if address == "a:1"]
    asked = only(seat.hear(*(Ack(ping.seq, A) for ping in calls)), Ask)
    assert [ask.address for ask in asked] == ["a:1"]
    seat.run(5.0)
    assert seat.status("a") is Status.SUSPECT
    seat.hear(alive("a", 1))
    assert seat.status("a") is Status.ALIVE


def test_time_in_which_this_node_stood_still_is_held_against_nobody() -> None:
    seat = Seat("abcdefghij", answering="bcdefghij")
    for source in (B, C, NodeId("d")):
        seat.hear(Suspect(A, 0, source))
    seat.run(0.5)
    seat.now = 60.0
    seat.handle(Tick(60.0))
    seat.run(63.0)
    assert seat.status("a") is Status.SUSPECT
    seat.run(70.0)
    assert seat.status("a") is Status.DEAD


@pytest.mark.parametrize(("late_seconds", "score"), [(0.05, 0), (0.2, 1)])
def test_a_late_timer_is_a_sign_of_bad_health(late_seconds: float, score: int) -> None:
    seat = Seat("abcdef")
    seat.now = seat.machine.deadline_seconds() + late_seconds
    seat.handle(Tick(seat.now))
    assert seat.machine.health.score == score


def test_a_probe_under_way_while_this_node_stood_still_is_not_lost() -> None:
    seat = Seat("abcdef")
    _, ping = seat.run_until_sent(Ping)
    seat.now += 60
    seat.handle(Tick(seat.now))
    seat.hear(Ack(ping.seq, ping.target))
    seat.run(seat.now + 2)
    assert ping.target not in seat.machine.suspicions


# --- for others ---


def test_a_ping_is_answered_unless_meant_for_a_former_owner_of_the_address() -> None:
    seat = Seat("ab")
    assert sent(seat.hear(Ping(5, A, ME)), Ack) == [("a:1", Ack(5, ME))]
    assert sent(seat.hear(Ping(5, A, NodeId("before"))), Ack) == []
    assert seat.ask(Ping(5, A, ME)) == Ack(5, ME)
    assert seat.ask(Ping(5, A, NodeId("before"))) is None


def test_pinging_for_somebody_else() -> None:
    seat = Seat("ab")
    ((address, ping),) = sent(seat.hear(PingRequest(5, A, B, "b:1")), Ping)
    assert (address, ping.target) == ("b:1", B)
    seat.now = 0.1
    assert sent(seat.hear(Ack(ping.seq, B), address="b:1"), Ack) == [("a:1", Ack(5, B))]
    assert sent(seat.run(0.45), Nack) == []


def test_no_answer_for_somebody_else_is_told_in_time() -> None:
    seat = Seat("ab")
    seat.hear(PingRequest(5, A, B, "b:1"))
    assert sent(seat.run(0.39), Nack) == []
    assert sent(seat.run(0.41), Nack) == [("a:1", Nack(5, ME))]


def test_probes_for_others_are_bounded() -> None:
    seat = Seat("ab", settings={"relays_max": 16})
    for number in range(40):
        seat.hear(PingRequest(number, A, B, "b:1"))
    assert len(sent(seat.actions, Ping)) == 16


# --- the dead ---


def test_the_dead_are_pinged_and_hear_that_they_are_dead() -> None:
    seat = Seat("ab")
    seat.hear(Dead(A, 0, B))
    seat.news  # noqa: B018 - nothing else is told with it
    pings = [ping for address, ping in sent(seat.run(6.5), Ping) if address == "a:1"]
    assert len(pings) == 3
    assert ("a:1", Dead(A, 0, ME)) in sent(seat.actions, Dead)


def test_one_of_the_dead_that_answers_is_asked_for_its_table_at_once() -> None:
    seat = Seat("abcdef")
    for node in (A, C):
        seat.hear(Dead(node, 0, B))
    while not (pings := [ping for address, ping in sent(seat.actions, Ping) if address in ("a:1", "c:1")]):
        seat.run(seat.now + 0.1)
    asks = only(seat.hear(*(Ack(ping.seq, ping.target) for ping in pings)), Ask)
    assert len(asks) == 1, "one table is enough for now"


def test_the_pings_of_the_dead_are_bounded() -> None:
    seat = Seat("abcdefghij")
    for name in "abcdefghij":
        seat.hear(Dead(NodeId(name), 0, B))
    seat.run(2.0)
    assert len(sent(seat.actions, Ping)) <= 3


def test_what_a_suspect_says_of_itself_ends_it() -> None:
    seat = Seat("abcdef")
    seat.hear(Suspect(A, 0, B))
    seat.hear(alive("a", 1))
    assert seat.machine.suspicions == {}
    assert [claim for claim in seat.news if isinstance(claim, Alive)] == [alive("a", 1)]
    seat.run(40)
    assert seat.status("a") is not Status.LEFT
