"""Claims and what they do to the table."""

import pytest

from sllmd.cluster.gossip.events import IdTaken, Incompatible, NameTaken
from sllmd.cluster.gossip.messages import Ack, Alive, Claim, Conflict, Dead, Left, Ping, Status, Suspect
from sllmd.core.ids import NodeId
from tests.cluster.gossip.seat import ME, Seat, alive, changes, only, sent

A, B, X = NodeId("a"), NodeId("b"), NodeId("x")
ALIVE, SUSPECT, DEAD, LEFT = Status


@pytest.mark.parametrize(
    ("claims", "belief"),
    [
        ([alive("x")], (ALIVE, 0)),
        ([Suspect(X, 0, A)], None),
        ([Dead(X, 0, A)], None),
        ([alive("x"), Suspect(X, 0, A)], (SUSPECT, 0)),
        ([alive("x"), Suspect(X, 0, A), alive("x", 0)], (SUSPECT, 0)),
        ([alive("x"), Suspect(X, 0, A), alive("x", 1)], (ALIVE, 1)),
        ([alive("x", 3), Suspect(X, 2, A)], (ALIVE, 3)),
        ([alive("x", 3), Dead(X, 2, A)], (ALIVE, 3)),
        ([alive("x"), Dead(X, 0, A)], (DEAD, 0)),
        ([alive("x"), Dead(X, 0, A), Suspect(X, 0, B)], (DEAD, 0)),
        ([alive("x"), Dead(X, 0, A), alive("x", 0)], (DEAD, 0)),
        ([alive("x"), Dead(X, 0, A), alive("x", 1)], (ALIVE, 1)),
        ([alive("x"), Dead(X, 0, A), Left(X, 0)], (LEFT, 0)),
        ([alive("x"), Left(X, 0), Dead(X, 0, A)], (LEFT, 0)),
        ([alive("x"), Left(X, 0), Suspect(X, 0, A)], (LEFT, 0)),
        ([alive("x"), Left(X, 0), alive("x", 1)], (ALIVE, 1)),
        ([alive("x", 1), Suspect(X, 4, A)], (SUSPECT, 4)),
        ([alive("x", 1), Suspect(X, 4, A), alive("x", 4)], (SUSPECT, 4)),
        ([alive("x", 1), Suspect(X, 4, A), alive("x", 5)], (ALIVE, 5)),
    ],
)
def test_the_order_of_claims(claims: list[Claim], belief: tuple[Status, int] | None) -> None:
    seat = Seat("ab")
    for claim in claims:
        seat.hear(claim)
    assert seat.belief("x") == belief


def test_only_what_is_news_is_told_on() -> None:
    seat = Seat("ab")
    seat.hear(alive("x", 1))
    assert seat.news == [alive("x", 1)]
    seat = Seat("ab")
    seat.hear(alive("a", 0), Suspect(B, 0, A), alive("b", 0), Dead(X, 1, A))
    assert seat.news == [Suspect(B, 0, A)]


@pytest.mark.parametrize("claim", [Suspect(ME, 0, A), Dead(ME, 0, A), Left(ME, 0)])
def test_what_is_said_of_this_node_is_refuted(claim: Claim) -> None:
    seat = Seat("ab")
    seat.hear(claim)
    assert seat.belief("me") == (ALIVE, 1)
    assert seat.news == [alive("me", 1)]
    assert seat.machine.health.score == 1
    seat.hear(claim)
    assert seat.belief("me") == (ALIVE, 1), "an old doubt needs no new answer"


def test_a_refutation_is_above_whatever_is_said() -> None:
    seat = Seat("ab")
    seat.hear(Dead(ME, 41, A))
    assert seat.belief("me") == (ALIVE, 42)


def test_a_node_that_starts_again_outbids_its_former_life() -> None:
    seat = Seat("ab")
    seat.hear(alive("me", 5, meta=b"before"))
    assert seat.belief("me") == (ALIVE, 6)
    assert seat.machine.me.meta == b""
    assert seat.machine.health.score == 0, "that is no sign of bad health"


def test_a_refutation_travels_with_the_answer() -> None:
    seat = Seat("ab")
    actions = seat.hear(Suspect(ME, 0, A), Ping(9, A, ME))
    assert sent(actions, Ack) == [("a:1", Ack(9, ME))]
    assert sent(actions, Alive) == [("a:1", alive("me", 1))]


def test_a_suspicion_keeps_what_a_late_claim_tells() -> None:
    seat = Seat("ab")
    seat.hear(alive("x", 1, meta=b"old"), Suspect(X, 2, A), alive("x", 2, meta=b"new"))
    assert seat.belief("x") == (SUSPECT, 2)
    assert seat.machine.table.members[X].claim.meta == b"new"


@pytest.mark.parametrize(("low", "high"), [(2, 9), (3, 3)])
def test_versions_that_do_not_meet(low: int, high: int) -> None:
    seat = Seat("ab")
    actions = seat.hear(alive("x", protocol_min=low, protocol_max=high))
    assert seat.status("x") is None
    (report,) = only(actions, Incompatible)
    assert (report.name, report.address) == ("name-x", "x:1")
    assert f"speaks gossip {low} to {high}" in report.reason
    assert only(seat.hear(alive("x", protocol_min=low, protocol_max=high)), Incompatible) == [], "once"


def test_versions_that_meet() -> None:
    seat = Seat("ab", protocol_min=2, protocol_max=4)
    seat.hear(alive("x", protocol_min=4, protocol_max=9), alive("y", protocol_min=1, protocol_max=2))
    assert seat.status("x") is seat.status("y") is ALIVE


# --- two nodes with one name ---


def test_one_name_twice_is_told_and_the_lower_id_keeps_it() -> None:
    seat = Seat("ab")
    actions = seat.hear(alive("x", name="name-a"))
    assert only(actions, NameTaken) == [NameTaken("name-a", A, X)]
    assert seat.status("x") is ALIVE, "both stay members: ids decide, names are for people"


def test_the_name_of_the_dead_is_free() -> None:
    seat = Seat("ab")
    seat.hear(alive("x", name="other"))
    seat.hear(Dead(A, 0, B))
    assert only(seat.hear(alive("y", name="name-a")), NameTaken) == []


# --- one id at two addresses ---


def test_the_holder_of_an_id_keeps_it_while_it_answers() -> None:
    seat = Seat("ab")
    actions = seat.hear(alive("a", 1, address="clone:1"))
    assert seat.machine.table.members[A].address == "a:1"
    ((address, ping),) = sent(actions, Ping)
    assert address == "a:1"
    actions = seat.hear(Ack(ping.seq, A))
    assert sent(actions, Conflict) == [("clone:1", Conflict(A, "a:1"))]


def test_an_id_whose_holder_is_silent_goes_to_the_next_address() -> None:
    """A node killed and started again elsewhere, before anybody noticed its death."""
    seat = Seat("ab")
    seat.hear(alive("a", 1, address="elsewhere:1"))
    seat.run(30)
    assert seat.machine.table.members[A].address == "elsewhere:1"


@pytest.mark.parametrize("end", [Dead(A, 0, B), Left(A, 0)])
def test_an_id_is_free_when_its_holder_is_gone(end: Claim) -> None:
    seat = Seat("ab")
    seat.hear(end)
    seat.hear(alive("a", 1, address="elsewhere:1"))
    assert seat.belief("a") == (ALIVE, 1)
    assert seat.machine.table.members[A].address == "elsewhere:1"


def test_an_old_claim_from_another_address_is_no_contest() -> None:
    seat = Seat("ab")
    seat.hear(alive("x", 5))
    assert sent(seat.hear(alive("x", 4, address="before:1")), Ping) == []


def test_a_young_node_gives_way_to_the_holder_of_its_id() -> None:
    seat = Seat("ab")
    assert only(seat.hear(Conflict(ME, "zz:1")), IdTaken) == [IdTaken("zz:1")]


@pytest.mark.parametrize(("address", "gives_way"), [("aa:1", True), ("zz:1", False)])
def test_of_two_settled_nodes_with_one_id_the_lower_address_stays(address: str, gives_way: bool) -> None:
    """Both were accepted, on two sides of a partition. Without an order, both would stop."""
    seat = Seat()
    seat.run(31)
    assert bool(only(seat.hear(Conflict(ME, address)), IdTaken)) is gives_way


def test_a_conflict_of_somebody_else_means_nothing() -> None:
    seat = Seat("ab")
    assert only(seat.hear(Conflict(A, "zz:1"), Conflict(ME, "me:1")), IdTaken) == []


def test_everything_new_is_told_to_the_shell() -> None:
    seat = Seat("ab")
    actions = seat.hear(alive("x"), Suspect(X, 0, A), Dead(X, 0, A), alive("x", 1), Left(X, 1))
    assert changes(actions) == [(X, ALIVE), (X, SUSPECT), (X, DEAD), (X, ALIVE), (X, LEFT)]
