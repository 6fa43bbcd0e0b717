"""The view follows what nodes say, and distrusts what cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.ids import GenerationId, ModelName, NodeId, ReplicaId
from sllmd.scheduler import reports
from sllmd.scheduler.decisions import Load, Source
from sllmd.scheduler.facts import Tier
from sllmd.scheduler.view import ReplicaState
from tests.scheduler.cluster import GB, NOW, decide, inventory, keeper, model, replica, told

R, G, A = ReplicaId("r"), GenerationId("g"), ModelName("a")
BEGAN = reports.LoadBegan(R, A, (0,), Source(Tier.SSD))


def test_a_life_told_in_reports() -> None:
    made = keeper([model("a", rows=2)], inventory("one", ssd="a"))
    node = made.view.nodes[NodeId("one")]
    assert told(made, "one", BEGAN)
    assert node.free == [14 * GB]
    assert node.ssd_path.until == pytest.approx(NOW + 2)
    assert told(made, "one", reports.LoadEnded(R, 2.0, 0.1), now=NOW + 2.1)
    seen = made.view.replicas[R]
    assert (seen.state, seen.load, seen.free_rows) == (ReplicaState.READY, None, 2)
    assert node.ssd_path.until < NOW
    assert told(made, "one", reports.GenerationBegan(R, reports.GenerationFacts(G, 10)))
    assert told(made, "one", reports.GenerationTokens(R, G, 7))
    assert seen.generations[G].tokens_out == 7
    assert told(made, "one", reports.GenerationEnded(R, G, 9), now=NOW + 5)
    assert told(made, "one", reports.ReplicaAsleep(R, A))
    assert node.free == [24 * GB]
    assert told(made, "one", reports.ReplicaGone(R))
    assert made.view.replicas == made.view.models[A].replicas == node.replicas == {}


@pytest.mark.parametrize(
    "impossible",
    [
        reports.GenerationBegan(ReplicaId("ghost"), reports.GenerationFacts(G, 10)),
        reports.GenerationEnded(ReplicaId("busy"), G, 10),
        reports.GenerationTokens(ReplicaId("busy"), G, 10),
        reports.GenerationBegan(ReplicaId("busy"), reports.GenerationFacts(GenerationId("busy-g0"), 1)),
        reports.ReplicaAsleep(ReplicaId("busy"), A),
        reports.LoadEnded(ReplicaId("busy"), 1.0, 1.0),
        reports.LoadProgress(ReplicaId("busy"), 1, 1.0),
        reports.LoadBegan(R, A, (7,), Source(Tier.SSD)),
        reports.LoadBegan(R, A, (0, 0), Source(Tier.SSD)),
        reports.LoadBegan(R, ModelName("unknown"), (0,), Source(Tier.SSD)),
    ],
)
def test_what_cannot_be_asks_for_an_inventory_and_nothing_is_placed_there_until_it_comes(impossible) -> None:
    nodes = [inventory("one", replica("busy", "a", 0, running=1), ssd="a"), inventory("two", ssd="a")]
    made = keeper([model("a")], *nodes)
    assert told(made, "two")
    assert not told(made, "one", impossible)
    assert not made.view.nodes[NodeId("one")].trusted
    assert isinstance(load := decide(made, "a").decision, Load)
    assert load.node == "two"
    assert not told(made, "one"), "further reports do not heal it"
    made.take(inventory("one", replica("busy", "a", 0, running=1), ssd="a", sequence=9), NOW)
    assert made.view.nodes[NodeId("one")].trusted
    assert made.apply(reports.Report(NodeId("one"), 10), NOW)


def test_old_reports_are_dropped_and_gaps_are_noticed() -> None:
    made = keeper([model("a")], inventory("one", sequence=5))
    version = made.view.version
    assert made.apply(reports.Report(NodeId("one"), 5, (reports.DrainingSet(True),)), NOW)
    assert made.view.version == version
    assert not made.view.nodes[NodeId("one")].draining
    assert not made.apply(reports.Report(NodeId("one"), 7), NOW)
    assert not made.apply(reports.Report(NodeId("stranger"), 1), NOW)


def test_an_inventory_replaces_what_was_there_and_keeps_what_was_learned() -> None:
    made = keeper([model("a")], inventory("one", replica("r", "a", 0, running=1), dram="a", ssd="a"))
    made.view.nodes[NodeId("one")].from_ssd.observe(3e9)
    made.take(inventory("one", ssd="a"), NOW)
    node = made.view.nodes[NodeId("one")]
    assert (made.view.replicas, node.free, node.dram, node.running) == ({}, [24 * GB], {}, 0)
    assert made.view.models[A].dram_holders == {}
    assert list(made.view.models[A].ssd_holders) == ["one"]
    assert node.from_ssd.value == 3e9


def test_a_node_that_began_a_load_by_itself_is_believed() -> None:
    made = keeper([model("a")], inventory("one", ssd="a"))
    assert told(made, "one", BEGAN)
    assert made.view.replicas[R].state is ReplicaState.LOADING


def test_a_node_that_goes_takes_everything_along() -> None:
    made = keeper([model("a")], inventory("one", replica("r", "a", 0), dram="a", ssd="a"), inventory("two"))
    made.drop_node(NodeId("one"))
    assert made.view.replicas == {}
    assert made.view.models[A].dram_holders == made.view.models[A].ssd_holders == {}
    made.drop_model(A)
    assert told(made, "two", reports.CopyGained(Tier.SSD, A)), "a copy of a model that nobody deploys"


def test_models_that_are_deployed_later_find_their_copies() -> None:
    made = keeper([], inventory("one", dram="a", ssd="a"))
    made.put_model(model("a"))
    assert list(made.view.models[A].dram_holders) == ["one"]


def test_a_load_that_runs_late_moves_those_behind_it_and_lowers_the_estimate() -> None:
    made = keeper([model("a"), model("b")], inventory("one", ssd="a b", devices=2))
    for name in "ab":
        load = decide(made, name).decision
        assert isinstance(load, Load)
        made.promise(ReplicaId(name), model(name), load, NOW)
    node = made.view.nodes[NodeId("one")]
    assert node.ssd_path.until == pytest.approx(NOW + 4)
    told(made, "one", reports.LoadBegan(ReplicaId("a"), A, (0,), Source(Tier.SSD)))
    late = reports.LoadProgress(ReplicaId("a"), 2 * GB, 2.0)
    assert told(made, "one", late, now=NOW + 2)
    assert node.from_ssd.value == pytest.approx(1e9)
    assert made.view.replicas[ReplicaId("a")].load.end_seconds == pytest.approx(NOW + 10.1)
    assert node.ssd_path.until > NOW + 11
    told(made, "one", reports.LoadEnded(ReplicaId("a"), 2.0, 0.1), now=NOW + 2.1)
    assert node.from_ssd.value == pytest.approx(5e9), "it caught up: the doubt is gone"


def test_the_error_of_estimates_is_kept_per_tier() -> None:
    made = keeper([model("a")], inventory("one", ssd="a"))
    told(made, "one", BEGAN)
    told(made, "one", reports.LoadEnded(R, 3.9, 0.1))
    assert made.view.errors[Tier.SSD].quantile(0.5) == pytest.approx((4.0 - 2.1) / 4.0)
    assert made.view.errors[Tier.DRAM].quantile(0.5) is None


def test_a_peers_bandwidth_is_learned_for_the_pair() -> None:
    made = keeper([model("a")], inventory("one"), inventory("two", dram="a"))
    told(made, "one", reports.LoadBegan(R, A, (0,), Source(Tier.PEER, NodeId("two"))))
    assert made.view.nodes[NodeId("two")].out_path.until > NOW
    told(made, "one", reports.LoadEnded(R, 2.0, 0.1))
    assert made.view.nodes[NodeId("one")].pairs[NodeId("two")].value == 5e9
    assert made.view.nodes[NodeId("two")].out_path.until < NOW


def test_a_cap_bounds_what_is_estimated() -> None:
    made = keeper([model("a")], inventory("one", ssd="a"), bandwidth_max_bytes={"ssd": 1e9})
    load = decide(made, "a").decision
    assert isinstance(load, Load)
    assert load.bytes_seconds == pytest.approx(10.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["r1", "r2", "r3"]), st.integers(0, 2)), max_size=30
    )
)
def test_whatever_is_reported_the_books_balance(steps: list[tuple[int, str, int]]) -> None:
    made = keeper([model("a", rows=2)], inventory("one", devices=2, ssd="a"))
    node = made.view.nodes[NodeId("one")]
    for kind, name, number in steps:
        one, generation = ReplicaId(name), GenerationId(f"{name}{number}")
        change = [
            reports.LoadBegan(one, A, (number % 2,), Source(Tier.SSD)),
            reports.LoadEnded(one, 1.0, 0.1),
            reports.GenerationBegan(one, reports.GenerationFacts(generation, 5)),
            reports.GenerationEnded(one, generation, 3),
            reports.ReplicaGone(one),
            reports.ReplicaAsleep(one, A),
        ][kind]
        if not told(made, "one", change):
            node.trusted = True
        for index, device in enumerate(node.devices):
            here = [r for r in node.replicas.values() if index in r.devices and r.replica in device.held]
            assert device.free_bytes == 24 * GB - 10 * GB * len(here)
            assert len(device.held) == len(here)
        assert node.free == sorted((device.free_bytes for device in node.devices), reverse=True)
        assert node.running == sum(len(r.generations) for r in node.replicas.values())
        assert made.view.replicas == made.view.models[A].replicas == node.replicas
