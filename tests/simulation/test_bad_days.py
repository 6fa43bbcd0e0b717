"""Bad days with a name. Real machine, real journal, real catalogue; clients write and read all the while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sllmd.cluster.journal.wal import Wal
from sllmd.cluster.raft.entries import forced
from sllmd.cluster.raft.events import Persist
from sllmd.core.ids import NodeId
from tests.simulation.clients import Client
from tests.simulation.host import JOURNAL, RAFT, Host
from tests.simulation.world import World, calm, check_history

LONG = 3 * RAFT.election_seconds_max


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Five voters, five clients, a leader. In the end, what clients were told must have an explanation."""
    world = World(request.param, voters=5)
    world.clients = [Client(world, f"c{number}") for number in range(5)]
    assert world.run(10, lambda: world.acknowledged > 20)
    yield world
    calm(world)
    check_history(world)


def leader_of(world: World) -> Host:
    leader = world.leader()
    assert leader is not None
    return leader


def others(world: World, *hosts: Host) -> list[Host]:
    return [host for host in world.hosts.values() if host not in hosts]


def writes_on(world: World, within_seconds: float) -> bool:
    goal = world.acknowledged + 10
    return world.run(world.now + within_seconds, lambda: world.acknowledged >= goal)


def test_the_leader_is_killed(world: World) -> None:
    old = leader_of(world)
    old.crash()
    assert writes_on(world, 3)
    assert leader_of(world) is not old


def test_a_follower_is_killed_and_nobody_notices(world: World) -> None:
    elections = world.oracle.elections
    others(world, leader_of(world))[0].crash()
    assert writes_on(world, 3)
    assert world.oracle.elections == elections


def test_all_are_killed_at_once(world: World) -> None:
    for host in world.hosts.values():
        host.crash()
    world.run(world.now + 1)
    for host in world.hosts.values():
        host.start()
    assert writes_on(world, 3)


def test_the_leader_is_stopped_and_wakes_up(world: World) -> None:
    old = leader_of(world)
    epoch = old.raft.term
    old.paused_until = world.now + LONG
    world.run(world.now + LONG)
    assert leader_of(world).raft.term > epoch
    assert writes_on(world, 1)
    assert [host for host in world.hosts.values() if host.leads] == [leader_of(world)]


@pytest.mark.parametrize("size", [1, 2])
def test_a_minority_is_cut_off_with_the_leader_in_it(world: World, size: int) -> None:
    old = leader_of(world)
    side = [old, *others(world, old)[: size - 1]]
    world.network.partition({host.node for host in side})
    world.run(world.now + LONG)
    assert not any(host.leads for host in side), "a leader without a majority has given up"
    assert writes_on(world, 3)
    world.network.heal()
    world.run(world.now + 1)
    assert {host.raft.leader for host in world.hosts.values()} == {leader_of(world).node}


def test_nobody_is_in_a_majority(world: World) -> None:
    nodes = list(world.hosts)
    world.network.partition(set(nodes[:2]))
    world.network.partition({nodes[2]})
    world.run(world.now + LONG)
    assert world.leader() is None
    written = world.acknowledged
    world.run(world.now + LONG)
    assert world.acknowledged == written
    world.network.heal()
    assert writes_on(world, 5)


@pytest.mark.parametrize("deaf", [True, False])
def test_the_leader_is_cut_off_one_way_for_good(world: World, deaf: bool) -> None:
    old = leader_of(world)
    for host in others(world, old):
        world.network.cut.add((host.node, old.node) if deaf else (old.node, host.node))
    assert writes_on(world, 4)
    assert leader_of(world) is not old


@pytest.mark.parametrize("reason", ["No space left on device", "Input/output error"])
def test_the_disk_of_the_leader_fails(world: World, reason: str) -> None:
    old = leader_of(world)
    old.disk.failing = reason
    assert writes_on(world, 4)
    assert not old.up, "it stopped by itself"
    assert leader_of(world) is not old


def test_a_node_comes_back_with_a_corrupt_journal(world: World) -> None:
    hurt = others(world, leader_of(world))[0]
    hurt.crash()
    assert hurt.disk.flip(world.random)
    hurt.start()
    assert "corrupt" in hurt.corrupt
    assert not hurt.up
    assert writes_on(world, 3)


def test_a_majority_is_lost_for_good(world: World) -> None:
    """The one that is left goes on alone with all that it has, and takes new members."""
    survivor = max(world.hosts.values(), key=lambda host: host.raft.log.last_index)
    for host in world.hosts.values():
        host.crash()
    for host in others(world, survivor):
        host.corrupt = "gone"
    wal = Wal(survivor.disk, JOURNAL)
    hard_state, entries = forced(wal.recovered.restored, survivor.node)
    write = Persist(0, hard_state, None, entries, ())
    wal.append([write])
    world.oracle.durable[survivor.node].write(write)
    survivor.start()
    assert writes_on(world, 15)
    assert leader_of(world).raft.membership.voters == (NodeId(survivor.node),)
