"""Many simulated members: how fast all know, who dies falsely, what heals."""

import pytest

from sllmd.cluster.gossip.events import Asked, Gone, IdTaken, Joined, JoinFailed, NameTaken
from sllmd.cluster.gossip.messages import Exchange, Status
from sllmd.core.ids import NodeId
from tests.simulation.gossip import GossipWorld, after_a_pause, seconds_until_all_know


@pytest.mark.parametrize("loss", [0.0, 0.25])
@pytest.mark.parametrize(
    "members",
    [200, pytest.param(1000, marks=pytest.mark.slow), pytest.param(5000, marks=pytest.mark.slow)],
)
def test_all_know_a_change(members: int, loss: float) -> None:
    seconds, world = seconds_until_all_know(members, loss, seed=1)
    assert seconds <= 3
    assert world.deaths == []
    assert world.packets <= 40 * members, "news must not multiply"


@pytest.mark.parametrize("loss", [0.0, 0.25])
@pytest.mark.parametrize("members", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_nobody_dies_of_a_pause(members: int, loss: float) -> None:
    world = after_a_pause(members, loss, seed=2)
    assert world.deaths == []
    assert world.everyone_sees_everyone()


@pytest.mark.slow
def test_nobody_dies_of_loss_alone() -> None:
    world = GossipWorld(100, seed=4)
    world.network.loss = 0.25
    world.network.straggling = 0.05
    world.network.doubling = 0.1
    world.run(120)
    assert world.deaths == []


@pytest.mark.parametrize("loss", [0.0, 0.25])
def test_the_dead_are_found(loss: float) -> None:
    world = GossipWorld(100, seed=3)
    world.network.loss = loss
    world.run(2)
    victims = world.random.sample(list(world.hosts.values()), 5)
    for host in victims:
        host.kill()
    world.run(2 + 16)  # two seconds to notice, 8 to refute, more until all have been told
    for host in victims:
        assert world.believe(host.node, Status.DEAD) == 95
    assert {node for _, _, node in world.deaths} == {host.node for host in victims}


def test_a_death_in_a_cluster_of_three() -> None:
    world = GossipWorld(3, seed=5)
    world.run(1)
    world.hosts[NodeId("n0002")].kill()
    world.run(1 + 9)
    assert world.believe(NodeId("n0002"), Status.DEAD) == 2


@pytest.mark.parametrize(
    ("members", "minority"), [(5, 2), (5, 1), pytest.param(100, 30, marks=pytest.mark.slow)]
)
def test_a_healed_partition_closes(members: int, minority: int) -> None:
    world = GossipWorld(members, seed=6)
    world.run(1)
    side = set(list(world.hosts)[:minority])
    world.network.partition(side)
    world.run(120)
    here = [host for node, host in world.hosts.items() if node not in side]
    assert all(world.believe(node, Status.DEAD, here) == len(here) for node in side)
    world.network.heal()
    world.run(125, world.everyone_sees_everyone)
    assert world.everyone_sees_everyone(), "within 5 s"


@pytest.mark.parametrize("seed", range(6))
def test_partitions_that_come_and_go_close_fast_each_time(seed: int) -> None:
    """They leave suspects behind, and nodes in bad health, which probe slowly."""
    world = GossipWorld(5, seed=seed)
    world.run(1)
    for _ in range(4):
        world.network.partition(set(list(world.hosts)[: 1 + seed % 2]))
        world.run(world.now + 3 + seed % 3)
        world.network.heal()
        world.run(world.now + 1)
    world.run(world.now + 2, world.everyone_sees_everyone)
    assert world.everyone_sees_everyone(), "within 3 s"


def test_one_bad_direction_kills_nobody() -> None:
    """Others and the stream's way there: a member that one other cannot reach by datagram stays alive."""
    world = GossipWorld(10, seed=7)
    nodes = list(world.hosts)
    world.network.cut.add((nodes[0], nodes[1]))
    world.run(60)
    assert world.deaths == []


def test_a_node_that_cannot_be_reached_by_anybody_dies_though_it_can_send() -> None:
    world = GossipWorld(10, seed=8)
    deaf, *others = list(world.hosts)
    for node in others:
        world.network.cut.add((node, deaf))
    world.run(40)
    assert world.believe(deaf, Status.DEAD, [world.hosts[node] for node in others]) == 9
    world.network.heal()
    world.run(45, world.everyone_sees_everyone)
    assert world.everyone_sees_everyone()


def test_a_cluster_grows_by_joining_one_member() -> None:
    world = GossipWorld(60, seed=9, converged=False)
    first, *others = world.hosts.values()
    for place, host in enumerate(others):
        world.at(place * 0.02, host.join, first)
    world.run(5, world.everyone_sees_everyone)
    assert world.everyone_sees_everyone()
    assert all(host.saw(Joined) for host in others)


def test_packets_fit_while_a_cluster_forms() -> None:
    world = GossipWorld(60, seed=9, converged=False, check_sizes=True)
    first, *others = world.hosts.values()
    for host in others:
        host.join(first)
    world.run(5, world.everyone_sees_everyone)
    assert world.everyone_sees_everyone()


def test_a_join_through_a_node_that_dies_meanwhile() -> None:
    world = GossipWorld(3, seed=10)
    dying, other, _ = world.hosts.values()
    joiner = world.add(NodeId("new"))
    joiner.join(dying)
    dying.kill()
    world.run(11)
    (failed,) = joiner.saw(JoinFailed)
    assert not failed.refused
    joiner.join(other)
    world.run(13)
    assert world.believe(joiner.node, Status.ALIVE) == 3


def test_all_hear_who_leaves_and_nobody_calls_it_dead() -> None:
    world = GossipWorld(50, seed=11)
    world.run(1)
    leaver = next(iter(world.hosts.values()))
    leaver.leave()
    world.run(30)
    assert leaver.saw(Gone)
    assert world.believe(leaver.node, Status.LEFT) == 49
    assert world.deaths == []


def test_a_node_that_starts_again_is_alive_again() -> None:
    world = GossipWorld(10, seed=12)
    world.run(1)
    old, other, *_ = world.hosts.values()
    old.kill()
    world.run(20)
    again = world.add(old.node)
    world.hosts[old.node] = again
    again.join(other)
    world.run(23)
    assert world.everyone_sees_everyone()
    assert again.machine.me.incarnation > 0


def test_a_node_started_again_elsewhere_before_its_death_was_noticed() -> None:
    world = GossipWorld(10, seed=13)
    world.run(1)
    old, other, *_ = world.hosts.values()
    old.kill()
    again = world.add(old.node, place="elsewhere")
    again.join(other)
    world.run(30)
    addresses = {host.machine.table.members[old.node].address for host in world.hosts.values() if host.up}
    assert addresses == {"elsewhere:1"}
    assert world.believe(old.node, Status.ALIVE) == 10
    assert not again.saw(IdTaken)


# --- who must not be there ---


@pytest.mark.parametrize("through_itself", [False, True])
def test_a_cloned_directory_stops_the_clone_and_not_the_original(through_itself: bool) -> None:
    world = GossipWorld(6, seed=14)
    world.run(40)
    original, other, *_ = world.hosts.values()
    clone = world.add(original.node, place="clone")
    clone.join(original if through_itself else other)
    world.run(50)
    assert clone.saw(IdTaken) == [IdTaken(original.address)]
    assert not clone.up
    assert original.up
    assert not original.saw(IdTaken)
    del world.hosts[clone.place]
    assert world.everyone_sees_everyone()
    assert world.deaths == []


def test_clones_on_two_sides_of_a_partition_one_of_them_stays() -> None:
    world = GossipWorld(6, seed=15)
    world.run(1)
    nodes = list(world.hosts)
    original = world.hosts[nodes[0]]
    world.network.partition(set(nodes[:3]))
    clone = world.add(original.node, place="clone")
    for node in nodes[:3]:
        world.network.cut |= {(node, clone.place), (clone.place, node)}
    world.run(60)
    clone.join(world.hosts[nodes[4]])
    world.run(120)
    assert world.hosts[nodes[4]].machine.table.members[original.node].address == clone.address
    world.network.heal()
    # Whoever meets a claim of the other asks its holder; which node that is, and when, is chance.
    world.run(400, lambda: [original.up, clone.up].count(True) == 1)
    assert [original.up, clone.up].count(True) == 1


def test_two_nodes_with_one_name_are_told_apart_by_everybody() -> None:
    world = GossipWorld(5, seed=16)
    world.run(1)
    twin = world.add(NodeId("twin"), name="name-n0002")
    twin.join(next(iter(world.hosts.values())))
    world.run(5)
    expected = NameTaken("name-n0002", NodeId("n0002"), NodeId("twin"))
    assert all(expected in host.saw(NameTaken) for host in world.hosts.values())
    assert world.everyone_sees_everyone()


def test_a_clock_that_is_off_by_minutes_changes_nothing() -> None:
    world = GossipWorld(5, seed=17, converged=False)
    late = world.add(NodeId("late"), clock_offset=-1234.0)
    early = world.add(NodeId("early"), clock_offset=98765.0)
    first = world.hosts[NodeId("n0000")]
    for host in world.hosts.values():
        if host is not first:
            host.join(first)
    world.run(30)
    assert world.everyone_sees_everyone()
    early.kill()
    world.run(50)
    assert world.believe(early.node, Status.DEAD) == 6
    assert late.status(early.node) is Status.DEAD


def test_versions_old_and_new() -> None:
    world = GossipWorld(3, seed=18)
    newer = world.add(NodeId("newer"), protocol=(1, 9))
    newest = world.add(NodeId("newest"), protocol=(5, 9))
    first = next(iter(world.hosts.values()))
    newer.join(first)
    newest.join(first)
    world.run(5)
    assert newer.saw(Joined)
    assert [failed.refused for failed in newest.saw(JoinFailed)] == [True]
    assert world.believe(newer.node, Status.ALIVE) == 4
    assert first.status(newest.node) is None


def test_a_replayed_packet_brings_nobody_back_to_life_and_kills_nobody() -> None:
    """Where the seal's window does not reach: everything ever said is said again, later."""
    world = GossipWorld(5, seed=19)
    heard: list[tuple[str, tuple]] = []
    hand_over = world.hand_over

    def record(source, address, messages) -> None:
        heard.append((address, messages))
        hand_over(source, address, messages)

    world.hand_over = record  # type: ignore[method-assign]
    world.run(1)
    victim = world.hosts[NodeId("n0004")]
    victim.pause(5)
    world.run(15)
    victim.kill()
    world.run(40)
    assert world.believe(victim.node, Status.DEAD) == 4
    deaths = len(world.deaths)
    for address, messages in list(heard):
        world.hand_over(world.hosts[NodeId("n0000")], address, messages)
    world.run(45)
    assert world.believe(victim.node, Status.DEAD) == 4
    others = [host for host in world.hosts.values() if host.up]
    assert all(world.believe(host.node, Status.ALIVE) == 4 for host in others)
    assert len(world.deaths) == deaths


@pytest.mark.slow
def test_a_thousand_members_take_little_memory() -> None:
    """Told one by one, as they come over the wire: each claim its own object."""
    import tracemalloc

    from sllmd.cluster.gossip.messages import pack_stream, unpack_stream

    world = GossipWorld(1000, seed=20)
    table = pack_stream(next(iter(world.hosts.values())).machine._table(joining=False))
    lonely = GossipWorld(1, seed=21).hosts[NodeId("n0000")]
    lonely.machine = GossipWorld(1, seed=21, converged=False).hosts[NodeId("n0000")].machine
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    exchange = unpack_stream(table)
    assert isinstance(exchange, Exchange)
    lonely.machine.handle(Asked(0.0, 1, exchange))
    del exchange
    added = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert lonely.machine.table.here_count == 1000
    assert added <= 5_000_000, "the rest of the 30 MB is for packets under way"
