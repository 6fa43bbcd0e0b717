"""Inventories become the scheduler's view, whatever was missed between them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sllmd.cluster.catalogue.records import Deployment, DeploymentSpec, Node
from sllmd.cluster.catalogue.state import Catalogue
from sllmd.core.ids import Digest, GenerationId, ModelName, NodeId, RequestId
from sllmd.roles.inventory import (
    CheckpointFact,
    Detail,
    DeviceFact,
    GenerationDetail,
    Inventory,
    ReplicaDetail,
    ReplicaFact,
)
from sllmd.roles.picture import Picture, replica_id, slots
from sllmd.scheduler.decisions import Load, Source
from sllmd.scheduler.facts import Request, Tier
from sllmd.scheduler.placement import place
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.view import ReplicaState

M, X, N = ModelName("m"), Digest("d" * 32), NodeId("n")
KEY = replica_id(M, X, N)
SIZE = 1_000_000_000
RATES = {"dram": 1e15, "ssd": 1e9, "peer": 5e8, "remote": 1e8}


def catalogue(*models: str, cordoned: bool = False) -> Catalogue:
    agreed = Catalogue()
    node = Node(N, "node", "", "", {}, {}, cordoned, 1)
    for name in models:
        deployment = Deployment(ModelName(name), DeploymentSpec(X, "", max_replicas=4), 1)
        agreed = replace(agreed, deployments=agreed.deployments.put(name, deployment))
    return replace(agreed, nodes=agreed.nodes.put(N, node))


def inventory(
    state: str | None = None,
    *generations: GenerationDetail,
    tier: str = "ssd",
    ended: tuple[GenerationDetail, ...] = (),
    **detail: float,
) -> Inventory:
    replicas: tuple[ReplicaFact, ...] = ()
    details: tuple[ReplicaDetail, ...] = ()
    if state is not None:
        replicas = (ReplicaFact(M, X, state, len(generations), 0, 8),)
        values = {"loaded_bytes": 0, "load_seconds": 0.0, "bytes_seconds": 0.0, "start_seconds": 0.0} | detail
        details = (ReplicaDetail(M, X, ("cpu:0",), "ssd", generations=generations, **values),)  # type: ignore[arg-type]
    return Inventory(
        replicas,
        (CheckpointFact(X, tier, SIZE, "A", 0, 1, 0),),
        (DeviceFact("cpu:0", None, None, len(replicas), 2),),
        detail=Detail("node", {}, 10 * SIZE, 8, 0, RATES, details, ended),
    )


@pytest.fixture
def picture() -> Picture:
    found = Picture(SchedulerSettings())
    found.agree(catalogue("m"), 0.0)
    found.take(N, inventory(), 0.0)
    return found


def test_a_cpu_counts_once_per_replica_that_it_takes_and_a_replica_fills_its_place(picture: Picture) -> None:
    assert slots(inventory()) == ("cpu:0", "cpu:0")
    picture.take(N, inventory("serving"), 1.0)
    assert picture.view.nodes[N].free == [10 * SIZE, 0]


def test_copies_follow_the_tiers_and_models_may_come_after_them(picture: Picture) -> None:
    node = picture.view.nodes[N]
    assert (set(node.ssd), set(node.dram)) == ({M}, set())
    picture.take(N, inventory(tier="dram"), 1.0)
    assert (set(node.ssd), set(node.dram)) == ({M}, {M})
    picture.take(N, inventory(tier="files"), 2.0)
    assert (set(node.ssd), set(node.dram)) == (set(), set())
    picture.take(N, inventory(), 3.0)
    picture.agree(catalogue("m", "same-bytes"), 4.0)
    assert set(node.ssd) == {M, "same-bytes"}
    picture.agree(catalogue(), 5.0)
    assert picture.view.models == {}


def test_a_load_is_followed_and_teaches_even_if_its_course_was_missed(picture: Picture) -> None:
    picture.take(N, inventory("starting", loaded_bytes=SIZE // 10, load_seconds=1.0), 1.0)
    replica = picture.view.replicas[KEY]
    assert replica.state is ReplicaState.LOADING
    picture.take(N, inventory("starting", loaded_bytes=SIZE // 10, load_seconds=1.0), 2.0)
    assert picture.view.nodes[N].from_ssd.value == pytest.approx(1e8)  # it runs late: later ones will, too
    picture.take(N, inventory("serving", bytes_seconds=4.0, start_seconds=0.5), 6.0)
    assert replica.state is ReplicaState.READY
    assert picture.view.nodes[N].from_ssd.value == pytest.approx(SIZE / 4)
    assert picture.view.nodes[N].start.value == pytest.approx(0.5)
    picture.take(N, inventory(), 7.0)
    picture.take(N, inventory("serving", bytes_seconds=4.0, start_seconds=0.5), 8.0)
    assert picture.view.nodes[N].from_ssd.count == 2
    assert picture.view.replicas[KEY].state is ReplicaState.READY


def test_a_promise_is_left_alone_until_its_node_begins(picture: Picture) -> None:
    model = picture.view.models[M].model
    picture.keeper.promise(KEY, model, Load(N, (1,), Source(Tier.SSD), 1.1, 1.0), 1.0)
    picture.take(N, inventory(), 1.1)
    assert picture.view.replicas[KEY].state is ReplicaState.PROMISED
    picture.take(N, inventory("starting"), 1.2)
    assert (picture.view.replicas[KEY].state, picture.view.replicas[KEY].devices) == (
        ReplicaState.LOADING,
        (1,),
    )
    picture.take(N, inventory(), 1.3)
    assert KEY not in picture.view.replicas
    assert picture.view.nodes[N].ssd_path.ends == {}


def test_generations_come_go_on_and_end_with_what_they_teach(picture: Picture) -> None:
    one = GenerationId("g")
    picture.take(N, inventory("serving", GenerationDetail(one, 100, 0)), 1.0)
    picture.take(N, inventory("serving", GenerationDetail(one, 100, 50)), 2.0)
    assert picture.view.replicas[KEY].generations[one].tokens_out == 50
    last = GenerationDetail(one, 100, 200, prefill_tokens=100, prefill_seconds=0.7)
    picture.take(N, inventory("serving", ended=(last,)), 5.0)
    known = picture.view.models[M]
    assert picture.view.replicas[KEY].generations == {}
    assert known.arrivals.count == 1
    assert known.token_seconds.value == pytest.approx(4.0 / 200)
    assert known.recompute.seconds(100) == pytest.approx(0.7)


def test_lines_are_counted_over_all_nodes_and_go_with_them(picture: Picture) -> None:
    other = NodeId("other")
    for node, waiting in ((N, 3), (other, 2)):
        picture.take(
            node, replace(inventory(), replicas=(ReplicaFact(M, X, "starting", 0, waiting, 8),)), 1.0
        )
    assert picture.view.models[M].waiting == 5
    picture.take(N, inventory(), 2.0)
    assert picture.view.models[M].waiting == 2
    picture.forget(other)
    assert picture.view.models[M].waiting == 0


def test_one_that_closes_may_serve_again_and_other_bytes_are_not_used(picture: Picture) -> None:
    picture.take(N, inventory("serving"), 1.0)
    picture.take(N, inventory("closing"), 2.0)
    assert picture.view.replicas[KEY].state is ReplicaState.CLOSING
    picture.take(N, inventory("serving"), 3.0)
    assert picture.view.replicas[KEY].state is ReplicaState.READY
    other = replace(inventory("serving"), replicas=(ReplicaFact(M, Digest("e" * 32), "serving", 0, 0, 8),))
    details = (replace(other.detail.replicas[0], digest=Digest("e" * 32)),)
    other = replace(other, detail=replace(other.detail, replicas=details))
    picture.take(N, other, 4.0)
    states = {replica.state for replica in picture.view.replicas.values()}
    assert states == {ReplicaState.CLOSING}


def test_a_cordoned_node_gets_nothing_and_the_same_inventory_changes_nothing(picture: Picture) -> None:
    picture.agree(catalogue("m", cordoned=True), 1.0)
    assert picture.view.nodes[N].draining
    picture.take(N, inventory("serving"), 2.0)
    before = dict(picture.view.replicas)
    picture.take(N, inventory("serving"), 3.0)
    assert picture.view.replicas == before
    assert picture.view.nodes[N].trusted
    picture.forget(N)
    assert picture.view.nodes == picture.view.replicas == {}


def test_a_replica_that_sleeps_holds_no_device_and_is_woken(picture: Picture) -> None:
    picture.take(N, inventory("serving", tier="dram"), 1.0)
    picture.take(N, inventory("dozing", tier="dram"), 2.0)
    node = picture.view.nodes[N]
    assert picture.view.replicas[KEY].state is ReplicaState.CLOSING
    for now in (3.0, 4.0):
        picture.take(N, inventory("asleep", tier="dram"), now)
        assert picture.view.replicas[KEY].state is ReplicaState.ASLEEP
        assert node.free == [10 * SIZE, 10 * SIZE]
    load = place(picture.view, Request(RequestId("q"), M, 5.0), 5.0).decision
    assert isinstance(load, Load)
    assert load.wakes == KEY
    picture.keeper.promise(KEY, picture.view.models[M].model, load, 5.0)
    picture.take(N, inventory("asleep", tier="dram"), 5.0)
    assert picture.view.replicas[KEY].state is ReplicaState.PROMISED
    picture.take(N, inventory("serving", tier="dram", start_seconds=0.05), 5.1)
    assert picture.view.replicas[KEY].state is ReplicaState.READY
    assert (node.wake.count, node.wake.value) == (1, pytest.approx(0.05))


def test_one_that_woke_by_itself_and_one_that_was_never_seen_awake(picture: Picture) -> None:
    picture.take(N, inventory("asleep", tier="dram"), 1.0)
    assert picture.view.replicas[KEY].state is ReplicaState.ASLEEP
    picture.take(N, inventory("starting", tier="dram"), 2.0)
    assert picture.view.replicas[KEY].state is ReplicaState.LOADING
    picture.take(N, inventory("serving", tier="dram", start_seconds=0.05), 2.1)
    assert picture.view.nodes[N].wake.count == 1
    picture.take(N, inventory(tier="dram"), 3.0)
    assert KEY not in picture.view.replicas
