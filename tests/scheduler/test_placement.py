"""Where a request's model is loaded: a table of clusters, then laws that hold for any."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.ids import NodeId, ReplicaId
from sllmd.scheduler import reports
from sllmd.scheduler.decisions import Evict, Load, Move, Refuse, Use, Wait, Way
from sllmd.scheduler.facts import Tier
from sllmd.scheduler.placement import place
from sllmd.scheduler.room import has_room
from tests.scheduler.cluster import GB, NOW, decide, inventory, keeper, model, replica, request, told


def test_a_ready_replica_with_a_free_row_is_used_and_the_fullest_of_them() -> None:
    made = keeper(
        [model("a", rows=4)],
        inventory("one", replica("r1", "a", 0, running=1)),
        inventory("two", replica("r2", "a", 0, running=3)),
        inventory("three", replica("r3", "a", 0, running=4)),
    )
    assert decide(made, "a").decision == Use(ReplicaId("r2"), NodeId("two"))
    assert decide(made, "a", ahead=1).decision == Use(ReplicaId("r1"), NodeId("one"))


def test_a_replica_that_failed_the_request_is_neither_used_nor_waited_for() -> None:
    made = keeper(
        [model("a", rows=4)],
        inventory("one", replica("r1", "a", 0, running=3)),
        inventory("two", replica("r2", "a", 0, running=0)),
        inventory("three", ssd="a"),
    )
    for lost, way, node in (
        ({"one"}, Way.USE, "two"),
        ({"one", "two"}, Way.LOAD, "three"),
    ):
        placement = place(made.view, request("a"), NOW, only={"three"}, without=lost)
        best = placement.candidates[0]
        assert (best.way, best.node) == (way, node)
        assert lost.isdisjoint(candidate.node for candidate in placement.candidates)


def test_dram_beats_ssd_beats_a_peer_beats_remote_at_these_bandwidths() -> None:
    made = keeper(
        [model("a")],
        inventory("far"),
        inventory("disk", ssd="a"),
        inventory("memory", dram="a"),
    )
    placement = decide(made, "a")
    found = [(candidate.node, candidate.source) for candidate in placement.candidates]
    assert found == [("memory", "dram"), ("disk", "ssd"), ("far", "peer memory")]
    load = placement.decision
    assert isinstance(load, Load)
    assert load.startup_seconds == pytest.approx(10 / 20 + 0.1)
    assert placement.candidates[1].startup_seconds == pytest.approx(10 / 5 + 0.1)
    assert placement.candidates[2].startup_seconds == pytest.approx(10 / 1.25 + 0.1)


def test_a_fast_network_makes_a_peers_memory_better_than_the_own_disk() -> None:
    rates = {"dram": 20e9, "ssd": 2e9, "peer": 12e9, "remote": 0.5e9}
    made = keeper(
        [model("a"), model("b")],
        inventory("holder", replica("r", "b", 0, running=1), dram="a", gb=12, bytes_per_second=rates),
        inventory("target", ssd="a", bytes_per_second=rates),
    )
    load = decide(made, "a").decision
    assert isinstance(load, Load)
    assert (load.node, load.source.tier, load.source.peer) == ("target", Tier.PEER, "holder")


def test_a_promise_lengthens_the_queue_of_its_paths_and_of_no_other() -> None:
    made = keeper([model("a"), model("b")], *(inventory(n, ssd="a b", devices=2) for n in ("one", "two")))
    first = decide(made, "a").decision
    assert isinstance(first, Load)
    made.promise(ReplicaId("r1"), model("a"), first, NOW)
    second = decide(made, "b")
    assert isinstance(second.decision, Load)
    assert second.decision.node != first.node
    queued = next(c for c in second.candidates if c.node == first.node)
    assert queued.queue_seconds == pytest.approx(10 / 5)
    made.withdraw(ReplicaId("r1"))
    assert decide(made, "b").candidates[1].queue_seconds == 0


def test_waiting_for_a_load_under_way_beats_a_slower_one() -> None:
    made = keeper([model("a")], inventory("one", ssd="a", devices=2))
    load = decide(made, "a").decision
    assert isinstance(load, Load)
    made.promise(ReplicaId("r1"), model("a"), load, NOW)
    placement = decide(made, "a", now=NOW + 1)
    assert placement.decision == Wait("the model is loading", pytest.approx(1.1))
    assert placement.candidates[0].way is Way.WAIT_LOAD


def test_an_idle_replica_goes_for_a_model_that_is_asked_for() -> None:
    made = keeper([model("a"), model("b")], inventory("one", replica("r", "b", 0), dram="a b", gb=12))
    load = decide(made, "a").decision
    assert isinstance(load, Load)
    assert load.victims == (Evict(ReplicaId("r"), "b"),)


def test_the_paper_s_figure_moving_somebody_away_beats_waiting_and_loading_elsewhere() -> None:
    """Section 5's motivation: B lies in DRAM where A runs; A can go on where B would load slowly."""
    made = keeper(
        [model("a"), model("b", 20)],
        inventory("near", replica("ra", "a", 0, running=1), dram="b"),
        inventory("free", dram="a"),
    )
    made.view.models["a"].generation_seconds.value = 60.0
    load = decide(made, "b").decision
    assert isinstance(load, Load)
    assert load.node == "near"
    [move] = load.victims
    assert isinstance(move, Move)
    assert (move.target_node, move.target_devices) == ("free", (0,))
    assert move.pause_seconds < 0.1 < move.seconds < 2


def test_nobody_is_moved_when_there_is_nowhere_to_go() -> None:
    made = keeper(
        [model("a"), model("b")], inventory("one", replica("ra", "a", 0, running=1), dram="a b", gb=12)
    )
    decision = decide(made, "b").decision
    assert isinstance(decision, Wait)
    assert decision.closing == "ra"
    assert 0 < decision.eta_seconds < math.inf


def test_two_victims_are_not_sent_to_the_same_device() -> None:
    made = keeper(
        [model("a"), model("b"), model("wide", 40, devices=2)],
        inventory(
            "near",
            replica("ra", "a", 0, running=1),
            replica("rb", "b", 1, running=1),
            dram="wide",
            devices=2,
        ),
        inventory("free", dram="a b", devices=2, gb=12),
    )
    for name in "ab":
        made.view.models[name].generation_seconds.value = 600.0
    load = decide(made, "wide").decision
    assert isinstance(load, Load)
    moves = [victim for victim in load.victims if isinstance(victim, Move)]
    assert sorted(move.target_devices for move in moves) == [(0,), (1,)]


def test_a_higher_priority_is_not_displaced() -> None:
    models = [model("a", rules={"priority": 1}), model("b")]
    made = keeper(models, inventory("one", replica("r", "a", 0), dram="a b", gb=12))
    assert isinstance(decide(made, "b").decision, Wait)
    assert isinstance(decide(made, "b", priority=1).decision, Load)


def test_a_replica_keeps_its_minimum_residency() -> None:
    made = keeper(
        [model("a"), model("b")], inventory("one", replica("r", "b", 0), dram="a b", gb=12), now=NOW - 1
    )
    assert isinstance(decide(made, "a").decision, Wait)
    assert isinstance(decide(made, "a", now=NOW + 1.1).decision, Load)


def test_a_sleeping_replica_is_woken() -> None:
    made = keeper([model("a")], inventory("one", replica("r", "a", 0, state="asleep"), dram="a"))
    placement = decide(made, "a")
    assert isinstance(placement.decision, Load)
    assert placement.decision.wakes == "r"
    assert placement.candidates[0].way is Way.WAKE
    woken = made.promise(ReplicaId("r2"), model("a"), placement.decision, NOW)
    assert woken.load is not None
    assert list(made.view.replicas) == ["r2"]


@pytest.mark.parametrize(
    ("rules", "node"),
    [({"labels": {"zone": "b"}}, "b1"), ({"nodes": ("a*",)}, "a1"), ({"nodes": ("b1",)}, "b1")],
)
def test_placement_rules_choose_the_node(rules: dict, node: str) -> None:
    made = keeper(
        [model("m", rules=rules)],
        inventory("a1", ssd="m", labels={"zone": "a"}),
        inventory("b1", ssd="m", labels={"zone": "b"}),
    )
    decision = decide(made, "m").decision
    assert isinstance(decision, Load)
    assert decision.node == node


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        (model("m", 30), "needs 30.0 GB on each of 1 device"),
        (model("m", 30, devices=3), "spread over 3 devices"),
        (model("m", rules={"labels": {"zone": "x"}}), "labels"),
        (model("m", remote=False), "no remote source"),
    ],
)
def test_what_fits_nowhere_is_refused_with_what_is_missing(wanted, missing: str) -> None:
    made = keeper([wanted], inventory("one", devices=2), inventory("two"))
    refusal = decide(made, "m").decision
    assert isinstance(refusal, Refuse)
    assert missing in refusal.missing


def test_a_model_that_is_not_deployed_and_an_empty_cluster_are_refused() -> None:
    assert isinstance(decide(keeper([]), "m").decision, Refuse)
    assert decide(keeper([model("m")]), "m").decision == Refuse("there is no node")


def test_a_draining_or_silent_node_gets_nothing_and_the_plan_says_why() -> None:
    made = keeper([model("a")], *(inventory(name, ssd="a") for name in ("one", "two", "three")))
    told(made, "one", reports.DrainingSet(True), now=NOW)
    told(made, "three", now=NOW)
    placement = decide(made, "a")
    assert isinstance(placement.decision, Load)
    assert placement.decision.node == "three"
    why = {candidate.node: candidate.why for candidate in placement.candidates}
    assert why == {
        "three": "chosen",
        "one": "it is draining",
        "two": "it has not been heard of lately",
    }


def test_a_clock_that_jumps_makes_no_node_stale() -> None:
    made = keeper([model("a")], *(inventory(name, ssd="a") for name in ("one", "two")))
    for now in (NOW + 1e6, NOW - 1e6):
        placement = decide(made, "a", now=now)
        assert isinstance(placement.decision, Load)
        assert placement.decision.startup_seconds == pytest.approx(2.1)


def test_ten_models_that_rush_one_device_take_turns_in_the_plan() -> None:
    models = [model(f"m{index}", 10) for index in range(10)]
    made = keeper(models, inventory("one", ssd=" ".join(each.name for each in models), gb=12))
    kinds = []
    for index, each in enumerate(models):
        decision = decide(made, each.name, now=NOW + index * 0.01).decision
        kinds.append(type(decision))
        if isinstance(decision, Load):
            made.promise(ReplicaId(f"r{index}"), each, decision, NOW)
    assert kinds == [Load] + [Wait] * 9


def test_no_more_replicas_than_allowed() -> None:
    made = keeper(
        [model("a", rules={"max_replicas": 1})],
        inventory("one", replica("r", "a", 0, running=1), ssd="a"),
        inventory("two", ssd="a"),
    )
    assert decide(made, "a").decision == Wait("all rows of the model are taken", pytest.approx(13.6, abs=14))


# --- laws ---

NAMES = [f"m{index}" for index in range(5)]


@st.composite
def clusters(draw: st.DrawFn):
    models = [
        model(name, draw(st.integers(1, 30)), devices=draw(st.integers(1, 2)), rows=2) for name in NAMES
    ]
    nodes = []
    for index in range(draw(st.integers(1, 4))):
        free, replicas = [24 * GB] * 2, []
        for place_ in range(draw(st.integers(0, 3))):
            each = draw(st.sampled_from(models))
            devices = tuple(range(each.devices)) if each.devices == 2 else (draw(st.integers(0, 1)),)
            if all(free[i] >= s for i, s in zip(devices, each.device_bytes, strict=True)):
                for i, s in zip(devices, each.device_bytes, strict=True):
                    free[i] -= s
                running = draw(st.integers(0, 2))
                replicas.append(replica(f"r{index}-{place_}", each.name, *devices, running=running))
        held = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
        nodes.append(
            inventory(f"n{index}", *replicas, devices=2, dram=" ".join(held), ssd=" ".join(NAMES[:3]))
        )
    return keeper(models, *nodes)


@given(clusters(), st.sampled_from(NAMES), st.integers(0, 3))
def test_a_decision_changes_nothing_repeats_and_fits(made, name: str, ahead: int) -> None:
    before = copy.deepcopy(made.view)
    placement = decide(made, name, ahead=ahead)
    assert repr(before) == repr(made.view)
    assert decide(made, name, ahead=ahead) == placement
    scores = [c.score for c in placement.candidates if c.way is not Way.NONE]
    assert scores == sorted(scores)
    if isinstance(placement.decision, Load):
        check_load(made, name, placement.decision)


def check_load(made, name: str, load: Load) -> None:
    """After the victims have gone it fits; each mover has a place of its own that is free."""
    wanted = made.view.models[name].model
    taken: set = set()
    for victim in load.victims:
        gone = made.view.replicas[victim.replica]
        assert gone.node == load.node
        assert gone.model.name != name
        if isinstance(victim, Evict):
            assert not gone.generations
        elif victim.target_replica is None:
            places = {(victim.target_node, index) for index in victim.target_devices}
            assert not places & taken
            taken |= places
            target = made.view.nodes[victim.target_node]
            assert victim.target_node != load.node
            assert has_room(target.free, gone.model)
    node = made.view.nodes[load.node]
    for part, index in enumerate(load.devices):
        freed = sum(
            made.view.replicas[v.replica].model.device_bytes[node.devices[index].held[v.replica]]
            for v in load.victims
            if v.replica in node.devices[index].held
        )
        assert node.devices[index].free_bytes + freed >= wanted.device_bytes[part]


@given(clusters(), st.sampled_from(NAMES))
def test_a_promise_withdrawn_leaves_no_trace(made, name: str) -> None:
    load = decide(made, name).decision
    if isinstance(load, Load):
        before = [(n.free, n.ssd_path.until, n.in_path.until) for n in made.view.nodes.values()]
        made.promise(ReplicaId("x"), made.view.models[name].model, load, NOW)
        made.withdraw(ReplicaId("x"))
        assert before == [(n.free, n.ssd_path.until, n.in_path.until) for n in made.view.nodes.values()]


def test_the_request_helper_asks_now() -> None:
    assert request("a").arrived_seconds == NOW
