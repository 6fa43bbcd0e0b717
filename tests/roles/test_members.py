"""Gossip, catalogue and agreement merged into what an operator sees, and what is wrong with it in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sllmd.cluster.catalogue import EMPTY, Catalogue, Command, apply
from sllmd.cluster.catalogue.commands import NodeAdmit, NodeCordon, NodeRemove
from sllmd.cluster.gossip import Meta
from sllmd.cluster.gossip.messages import Status
from sllmd.cluster.roster import MemberView
from sllmd.core.ids import NodeId
from sllmd.roles.degraded import degraded_reasons, majority_lost
from sllmd.roles.inventory import Inventory
from sllmd.roles.members import ClusterFacts, cluster_status

A, B, C = NodeId("id-a"), NodeId("id-b"), NodeId("id-c")
NOW = 1_000.0


def view(node: NodeId, status: Status = Status.ALIVE, name: str | None = None, **changes) -> MemberView:
    name = name or node.removeprefix("id-")
    seen = MemberView(
        node, name, f"{name}:8345", status, NOW - 10, 1, Meta(f"{name}:8344", "0.1.0"), (), node == A
    )
    return replace(seen, **changes)


def agreed(*bodies) -> Catalogue:
    state = EMPTY
    for body in bodies:
        state, _ = apply(state, Command(body))
    return state


def admit(node: NodeId) -> NodeAdmit:
    return NodeAdmit(node, node.removeprefix("id-"), f"{node}:1", "", {"cpu:0": 0}, {}, None)


CATALOGUE = agreed(admit(A), admit(B), admit(C))
FACTS = ClusterFacts(
    cluster_id="c1",
    me=A,
    heard=(view(A), view(B), view(C)),
    catalogue=CATALOGUE,
    position=7,
    age_seconds=0.1,
    epoch=3,
    leader=B,
    store="raft",
    voters=(A, B, C),
)


def reasons(facts: ClusterFacts) -> tuple[str, ...]:
    return degraded_reasons(cluster_status(facts), health=facts.health, now=NOW)


def test_a_cluster_that_is_well() -> None:
    status = cluster_status(FACTS)
    assert [(member.name, member.state, member.role, member.leader) for member in status.members] == [
        ("a", "alive", "voter", False),
        ("b", "alive", "voter", True),
        ("c", "alive", "voter", False),
    ]
    assert [member.is_me for member in status.members] == [True, False, False]
    assert (status.leader, status.leader_id, status.epoch) == ("b", B, 3)
    assert (status.control.voters, status.control.voters_alive) == (("a", "b", "c"), 3)
    assert status.control.voters_may_fail == 1
    assert reasons(FACTS) == ()


def test_who_suspects_whom_is_told_by_name() -> None:
    facts = replace(FACTS, heard=(view(A), view(B), view(C, Status.SUSPECT, suspected_by=(A, B))))
    status = cluster_status(facts)
    assert status.members[2].suspected_by == ("a", "b")
    assert status.control.voters_may_fail == 0
    assert reasons(facts) == ("c is suspect for 10 s: no answer to probes of a, b",)


def test_a_dead_voter() -> None:
    facts = replace(FACTS, heard=(view(A), view(B), view(C, Status.DEAD)))
    assert cluster_status(facts).control.voters_may_fail == 0
    [reason] = reasons(facts)
    assert reason.startswith("c, a voter, is dead for 10 s")
    assert "sllmd node rm c" in reason


def test_a_lost_majority_says_what_goes_on_and_what_does_not() -> None:
    facts = replace(FACTS, heard=(view(A), view(B, Status.DEAD), view(C, Status.DEAD)), leader=None)
    status = cluster_status(facts)
    assert status.leader is None
    first, *rest = reasons(replace(facts, leader=B))  # as a node without a vote goes on to believe
    assert first.startswith(
        "2 of 3 voters are dead (b, c): nothing can be changed, what is loaded is still served"
    )
    assert "start b or c again" in first
    assert "sllmd recover --force-new-cluster" in first
    assert not [each for each in rest if "node rm" in each], "which nobody could agree to"


def test_a_dead_only_voter_is_no_lost_cause_until_it_counts_as_dead() -> None:
    alone = replace(FACTS, voters=(B,))
    suspect = replace(alone, heard=(view(A), view(B, Status.SUSPECT), view(C)))
    assert majority_lost(cluster_status(suspect).control) is None
    dead = replace(alone, heard=(view(A), view(B, Status.DEAD), view(C)))
    lost = majority_lost(cluster_status(dead).control)
    assert lost is not None
    assert lost.message.startswith("the only voter is dead (b)")
    assert majority_lost(cluster_status(replace(dead, voters=(A, B, C))).control) is None


def test_a_member_that_was_never_heard_of_counts_as_dead_since_nobody_knows_when() -> None:
    facts = replace(FACTS, heard=(view(A), view(B)))
    assert (cluster_status(facts).members[2].state, cluster_status(facts).members[2].since) == ("dead", None)
    assert "not heard of for an hour" in reasons(facts)[0]


def test_a_removed_one_has_left_though_gossip_remembers_its_death() -> None:
    catalogue = agreed(admit(A), admit(B), admit(C), NodeRemove(C, None))
    facts = replace(FACTS, catalogue=catalogue, heard=(view(A), view(B), view(C, Status.DEAD)), voters=(A, B))
    member = cluster_status(facts).members[2]
    assert (member.state, member.role, member.admitted) == ("left", "client", False)
    assert reasons(facts) == ()


def test_cordons_drains_and_devices() -> None:
    catalogue = agreed(admit(A), admit(B), NodeCordon(B, cordoned=True))
    facts = replace(
        FACTS, catalogue=catalogue, heard=(view(A), view(B)), inventories={A: Inventory(draining=True)}
    )
    a, b = cluster_status(facts).members
    assert (a.drained_since, b.drained_since) == (None, None)
    empty = Inventory(draining=True, drained_since_seconds=NOW)
    drained, _ = cluster_status(replace(facts, inventories={A: empty})).members
    assert (drained.draining, drained.drained_since) == (False, NOW)
    assert (a.draining, a.cordoned, b.draining, b.cordoned) == (True, False, False, True)
    assert a.devices == ("cpu:0",)


def test_two_of_one_name() -> None:
    facts = replace(FACTS, heard=(view(A), view(B, name="a"), view(C, Status.LEFT, name="a")))
    assert [member.name_conflict for member in cluster_status(facts).members] == [True, True, False]
    assert "2 nodes are called a: give one another name with --name" in reasons(facts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"leader": None}, "nobody leads"),
        ({"age_seconds": 61.0}, "1m01s old"),
        ({"age_seconds": float("inf")}, "has not heard of the catalogue yet"),
        ({"health": 3}, "answers late"),
        (
            {"heard": (view(A), view(B), view(C, meta=Meta("c:1", "0.2.0")))},
            "different versions: 2 × 0.1.0, 1 × 0.2.0",
        ),
    ],
)
def test_what_is_wrong_is_said_in_words(changes: dict, words: str) -> None:
    [reason] = reasons(replace(FACTS, **changes))
    assert words in reason


def test_an_unknown_age_is_no_number() -> None:
    assert cluster_status(replace(FACTS, age_seconds=float("inf"))).control.age_seconds is None
