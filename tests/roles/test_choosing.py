"""Where a generation runs, rule by rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.choosing import Wanted, choose
from sllmd.roles.inventory import CheckpointFact, DeviceFact, Inventory, ReplicaFact

M, D = ModelName("m"), Digest("d")
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
FREE = DeviceFact("cpu:0", None, None, 0, 4)
FULL = replace(FREE, replicas=4)


def replica(state: str = "serving", running: int = 0, waiting: int = 0, model: ModelName = M) -> ReplicaFact:
    return ReplicaFact(model, D if model == M else Digest("other"), state, running, waiting, 8)


def held(tier: str) -> CheckpointFact:
    return CheckpointFact(D, tier, 1000, "llama", 2048, 1, 0)


def node(
    *replicas: ReplicaFact, tier: str | None = None, device: DeviceFact = FREE, **more: bool
) -> Inventory:
    return Inventory(replicas, (held(tier),) if tier else (), (device,), **more)


def order(
    nodes: dict[NodeId, Inventory],
    *,
    me: NodeId = A,
    most: int = 9,
    ill: tuple[NodeId, ...] = (),
    mine: Mapping[NodeId, int] = MappingProxyType({}),
) -> list[tuple[NodeId, int]]:
    well = [each for each in nodes if each not in ill]
    found = choose(nodes, Wanted(M, D, most), me=me, well=well, mine=mine)
    return [(each.node, each.rule) for each in found]


def test_a_ready_replica_of_this_node_comes_first_then_the_least_loaded() -> None:
    nodes = {A: node(replica(running=7)), B: node(replica(running=5)), C: node(replica(running=2))}
    assert order(nodes) == [(A, 1), (C, 1), (B, 1)]
    assert order(nodes, me=NodeId("z")) == [(C, 1), (B, 1), (A, 1)]


def test_what_was_sent_there_counts_before_it_is_told() -> None:
    nodes = {A: node(), B: node(replica()), C: node(replica(running=3))}
    assert order(nodes, mine={B: 4})[:2] == [(C, 1), (B, 1)]
    assert order(nodes, mine={B: 8, C: 3}) == [(C, 1), (A, 4), (B, 5)]


def test_a_burst_from_one_node_goes_to_all_replicas_alike() -> None:
    nodes = {B: node(replica()), C: node(replica())}
    mine = {B: 0, C: 0}
    for _ in range(16):
        mine[order(nodes, mine=mine)[0][0]] += 1
    assert mine == {B: 8, C: 8}


def test_nodes_that_know_the_same_do_not_all_begin_with_the_same_replica() -> None:
    nodes = {B: node(replica()), C: node(replica())}
    assert {order(nodes, me=NodeId(f"n{number}"))[0][0] for number in range(16)} == {B, C}


def test_one_that_starts_is_joined_rather_than_another_started() -> None:
    assert order({A: node(tier="dram"), B: node(replica("starting"))}) == [(B, 2), (A, 3)]


def test_who_has_the_checkpoint_starts_it_memory_before_disk_before_who_must_fetch() -> None:
    nodes = {A: node(), B: node(tier="ssd"), C: node(tier="dram")}
    assert order(nodes) == [(C, 3), (B, 3), (A, 4)]
    assert order({A: node(tier="ssd"), B: node(tier="ssd")}) == [(A, 3), (B, 3)]
    assert order({A: node(tier="files"), B: node(tier="ssd")}) == [(B, 3), (A, 4)]


def test_who_must_fetch_is_the_one_with_the_least_to_do() -> None:
    other = ModelName("other")
    nodes = {A: node(replica(running=3, model=other)), B: node(replica(running=1, model=other))}
    assert order(nodes) == [(B, 4), (A, 4)]


def test_a_full_replica_is_queued_at_only_when_nobody_has_room() -> None:
    full = replica(running=8, waiting=3)
    assert order({A: node(full), B: node(tier="ssd")}) == [(B, 3), (A, 5)]
    assert order({A: node(full), B: node(device=FULL)}) == [(A, 5), (B, 6)]
    assert order({A: node(full), B: node(replica(running=8))}) == [(B, 5), (A, 5)]


def test_no_more_copies_than_the_deployment_allows() -> None:
    nodes = {A: node(tier="dram"), B: node(replica(running=8))}
    assert order(nodes, most=1) == [(B, 5), (A, 6)]
    assert order(nodes, most=2)[0] == (A, 3)


def test_a_resting_replica_of_another_model_makes_room_a_busy_one_does_not() -> None:
    other = ModelName("other")
    resting = node(replica(model=other), tier="ssd", device=FULL)
    busy = node(replica(running=1, model=other), tier="ssd", device=FULL)
    assert order({A: busy, B: resting}) == [(B, 3), (A, 6)]


@pytest.mark.parametrize("state", ["closing", "stopping"])
def test_a_replica_on_its_way_out_is_none(state: str) -> None:
    assert order({A: node(replica(state), tier="dram")}) == [(A, 3)]


def test_a_replica_of_other_bytes_under_the_name_is_none() -> None:
    stale = replace(replica(), digest=Digest("older"))
    assert order({A: node(stale), B: node(tier="ssd")}) == [(B, 3), (A, 4)]


def test_who_drains_or_is_not_well_is_not_asked() -> None:
    nodes = {A: node(replica(), draining=True), B: node(replica()), C: node(replica())}
    assert order(nodes, ill=(B,)) == [(C, 1)]
    assert order(nodes, ill=(B, C)) == []


def test_a_node_without_devices_comes_last() -> None:
    nodes = {A: Inventory(checkpoints=(held("dram"),)), B: node()}
    assert order(nodes) == [(B, 4), (A, 6)]
