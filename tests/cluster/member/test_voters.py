"""The policy of who votes, as a table, and as a walk that must come to an end."""

import random
from dataclasses import replace

import pytest

from sllmd.cluster.member.settings import VoterSettings
from sllmd.cluster.member.voters import Change, HandOver, Standing, best_voter, next_step, voter_count
from sllmd.cluster.raft.entries import Membership
from sllmd.core.ids import NodeId
from tests.cluster.play import members

SETTINGS = VoterSettings()


def well(node: str, lag: int | None = None, **facts) -> Standing:
    return replace(
        Standing(NodeId(node), "", belongs=True, well_seconds=60, silent_seconds=0, lag_entries=lag), **facts
    )


def dead(node: str, seconds: float, **facts) -> Standing:
    return well(node, **{"well_seconds": 0, "silent_seconds": seconds, "lag": 0, **facts})


def standings(*given: Standing) -> dict[NodeId, Standing]:
    return {one.node: one for one in given}


def step(before: Membership, *given: Standing, leader: str = "a", **settings):
    return next_step(before, NodeId(leader), standings(*given), SETTINGS.model_copy(update=settings))


def goes_to(before: Membership, *given: Standing, leader: str = "a", **settings) -> Membership | None:
    taken = step(before, *given, leader=leader, **settings)
    assert taken is None or isinstance(taken, Change)
    return None if taken is None else taken.members


@pytest.mark.parametrize(
    ("nodes", "configured", "voters"),
    [(1, 0, 1), (2, 0, 1), (3, 0, 3), (4, 0, 3), (8, 0, 3), (9, 0, 5), (1000, 0, 5),
     (5, 5, 5), (4, 5, 3), (2, 3, 1), (20, 3, 3), (20, 1, 1)],
)  # fmt: skip
def test_how_many_vote(nodes: int, configured: int, voters: int) -> None:
    assert voter_count(nodes, VoterSettings(count=configured)) == voters


def test_one_alone_stays_alone() -> None:
    assert step(members("a"), well("a", 0)) is None


def test_the_second_node_listens_and_does_not_vote() -> None:
    a, b = well("a", 0), well("b", 0)
    assert goes_to(members("a"), a, well("b")) == members("a", "b")
    assert step(members("a", "b"), a, b) is None


def test_the_third_node_makes_three_voters_and_two_is_passed_through() -> None:
    a, b, c = well("a", 0), well("b", 0), well("c", 0)
    assert goes_to(members("a", "b"), a, b, well("c")) == members("a", "bc")
    assert step(members("a", "bc"), a, b, well("c", 5000)) is None
    assert goes_to(members("a", "bc"), a, b, c) == members("ab", "c")
    assert goes_to(members("ab", "c"), a, b, c) == members("abc")
    assert step(members("abc"), a, b, c) is None


@pytest.mark.parametrize("unready", [{"lag": 100}, {"well_seconds": 9.9}, {"belongs": False}, {"lag": None}])
def test_who_is_not_ready_gets_no_vote(unready) -> None:
    taken = step(
        members("ab", "c"), well("a", 0), well("b", 0), well("c", **{"lag": 0, **unready}), well("d", 0)
    )
    assert not isinstance(taken, Change) or "c" not in taken.members.voters


def test_two_standbys_and_the_rest_follow() -> None:
    three = [well(name, 0) for name in "abc"]
    assert goes_to(members("abc"), *three, well("d"), well("e"), well("f")) == members("abc", "d")
    assert goes_to(members("abc", "d"), *three, well("d", 0), well("e"), well("f")) == members("abc", "de")
    assert step(members("abc", "de"), *three, well("d", 0), well("e", 0), well("f")) is None


def test_a_dead_voter_is_replaced_before_it_is_removed() -> None:
    a, c, d, e = (well(name, 0) for name in "acde")
    assert step(members("abc", "de"), a, dead("b", 59), c, d, e) is None
    assert goes_to(members("abc", "de"), a, dead("b", 61), c, d, e) == members("abcd", "e")
    assert goes_to(members("abcd", "e"), a, dead("b", 61), c, d, e) == members("acd", "e")
    assert step(members("acd", "e"), a, dead("b", 61), c, d, e) is None


def test_a_dead_voter_that_nobody_can_replace_stays() -> None:
    assert step(members("abc"), well("a", 0), dead("b", 1e6), well("c", 0)) is None


def test_no_vote_is_taken_while_too_few_serve() -> None:
    a, b = well("a", 0), dead("b", 61)
    assert step(members("abcd"), a, b, dead("c", 5), dead("d", 5)) is None


def test_a_removed_node_leaves_at_once_where_nobody_can_take_its_place() -> None:
    a, b = well("a", 0), well("b", 0)
    c = well("c", 0, belongs=False)
    assert goes_to(members("abc"), a, b, c) == members("ab")
    assert goes_to(members("ab"), a, b) == members("a", "b")


def test_a_removed_node_stays_until_its_successor_is_ready() -> None:
    a, b, c = well("a", 0), well("b", 0), well("c", 0, belongs=False)
    assert goes_to(members("abc"), a, b, c, well("d")) == members("abc", "d")
    assert goes_to(members("abc", "d"), a, b, c, well("d", 0)) == members("abcd")
    assert goes_to(members("abcd"), a, b, c, well("d", 0)) == members("abd")


def test_a_removed_standby_goes() -> None:
    three = [well(name, 0) for name in "abc"]
    assert goes_to(members("abc", "d"), *three, well("d", 0, belongs=False)) == members("abc")


def test_a_leader_that_leaves_hands_over_to_who_takes_its_place() -> None:
    a, b = well("a", 0, belongs=False), well("b", 0)
    assert goes_to(members("a", "b"), a, b) == members("ab")
    taken = step(members("ab"), a, b)
    assert isinstance(taken, HandOver)
    assert taken.target == "b"
    assert goes_to(members("ab"), a, b, leader="b") == members("b")


def test_voters_are_spread_over_racks() -> None:
    a, b, c = (well(name, 0, zone="1") for name in "abc")
    d = well("d", 0, zone="2")
    assert goes_to(members("abc", "d"), a, b, c, d) == members("abcd")
    after = goes_to(members("abcd"), a, b, c, d)
    assert after is not None
    assert "a" in after.voters, "the leader stays"
    assert "d" in after.voters
    assert step(after, a, b, c, d) is None


def test_who_leads_next_is_well_belongs_and_has_the_most() -> None:
    given = standings(well("a", 0), dead("b", 1), well("c", 7), well("d", 3), well("e", 0, belongs=False))
    assert best_voter(members("abcde"), NodeId("a"), given) == "d"
    assert best_voter(members("ab"), NodeId("a"), given) is None


@pytest.mark.parametrize("seed", range(60))
def test_every_walk_ends_at_the_target_and_keeps_a_majority(seed: int) -> None:
    """From any membership, one step at a time, with whoever became a member caught up."""
    chance = random.Random(seed)
    names = "abcdefghijkl"[: chance.randint(1, 12)]
    facts = {
        name: {"zone": chance.choice("123"), "belongs": name == "a" or chance.random() < 0.8}
        for name in names
    }
    down = {name for name in names[1:] if chance.random() < 0.25}
    some = [name for name in names[1:] if chance.random() < 0.5]
    current = members("a" + "".join(some[: 2 * (len(some) // 4)]), "".join(some[2 * (len(some) // 4) :]))
    up = [voter for voter in current.voters if voter not in down]
    if len(up) < current.quorum:
        down -= set(current.voters)
    for _ in range(60):
        given = [
            dead(name, 100, **facts[name])
            if name in down
            else well(name, 0 if name in current.everyone else None, **facts[name])
            for name in names
        ]
        taken = step(current, *given)
        if taken is None:
            break
        assert isinstance(taken, Change), "only a leader that goes hands over"
        assert taken.members.is_one_step_from(current)
        assert "a" in taken.members.voters
        serving = [voter for voter in taken.members.voters if voter not in down]
        assert len(serving) >= taken.members.quorum
        current = taken.members
    else:
        pytest.fail(f"it never ends: {current}")
    able = [name for name in names if name not in down and facts[name]["belongs"]]
    target = voter_count(sum(fact["belongs"] for fact in facts.values()), SETTINGS)
    fit = [voter for voter in current.voters if voter in able]
    assert len(fit) >= min(target, len(able) - (len(able) % 2 == 0)) or len(current.voters) > len(fit)
    assert not [one for one in current.learners if one not in able]
