from collections import Counter

from sllmd.cluster.gossip.chance import Chance
from sllmd.cluster.gossip.members import Member, Table
from sllmd.cluster.gossip.messages import Status
from sllmd.core.ids import NodeId
from tests.cluster.gossip.seat import alive

ME = NodeId("me")


def table(count: int, *, statuses: dict[int, Status] | None = None) -> Table:
    members = [
        Member(alive(f"n{number}"), 0, (statuses or {}).get(number, Status.ALIVE), 0.0)
        for number in range(count)
    ]
    members.append(Member(alive("me"), 0, Status.ALIVE, 0.0))
    return Table(ME, {member.node: member for member in members}, Chance(5))


def test_all_others_are_probed_once_a_turn() -> None:
    one = table(20)
    probed = Counter(member.node for _ in range(200) if (member := one.next_to_probe()))
    assert len(probed) == 20
    assert ME not in probed
    assert set(probed.values()) <= {9, 10, 11}, "the first turn begins, and the last ends, in its middle"


def test_turns_have_different_orders() -> None:
    one = table(20)
    orders = {tuple(member.node for _ in range(20) if (member := one.next_to_probe())) for _ in range(9)}
    assert len(orders) == 9


def test_the_dead_and_the_forgotten_are_not_probed() -> None:
    one = table(4, statuses={0: Status.DEAD, 1: Status.LEFT})
    one.remove(NodeId("n0"))
    assert {member.node for _ in range(10) if (member := one.next_to_probe())} == {"n2", "n3"}


def test_nobody_to_probe() -> None:
    assert Table(ME, {}, Chance(5)).next_to_probe() is None
    assert table(1, statuses={0: Status.DEAD}).next_to_probe() is None


def test_a_newcomer_is_probed_within_the_turn() -> None:
    one = table(10)
    one.put(Member(alive("new"), 0, Status.ALIVE, 0.0))
    assert "new" in {member.node for _ in range(22) if (member := one.next_to_probe())}


def test_newcomers_stand_anywhere_in_the_turn() -> None:
    places = set()
    for seed in range(20):
        one = Table(ME, {}, Chance(seed))
        for number in range(10):
            one.put(Member(alive(f"n{number}"), 0, Status.ALIVE, 0.0))
        turn = [member.node for _ in range(10) if (member := one.next_to_probe())]
        places.add(turn.index(NodeId("n9")))
    assert len(places) > 5


def test_samples_are_different_fitting_and_spread() -> None:
    one = table(50, statuses={7: Status.DEAD})
    counts: Counter[NodeId] = Counter()
    for _ in range(1000):
        sample = one.sample(3, lambda member: member.here)
        assert len(sample) == len({member.node for member in sample}) == 3
        counts.update(member.node for member in sample)
    assert len(counts) == 49
    assert ME not in counts
    assert max(counts.values()) < 2 * min(counts.values())


def test_small_clusters_are_sampled_in_full() -> None:
    one = table(2)
    for _ in range(20):
        assert len(one.sample(3, lambda member: member.here)) == 2


def test_counts() -> None:
    one = table(3, statuses={0: Status.DEAD, 1: Status.SUSPECT})
    assert (one.here_count, one.dead) == (3, {"n0"})
    one.put(Member(alive("n0"), 1, Status.ALIVE, 0.0))
    one.put(Member(alive("n2"), 1, Status.DEAD, 0.0))
    one.put(Member(alive("n1"), 1, Status.LEFT, 0.0))
    assert (one.here_count, one.dead) == (2, {"n2"})
    one.remove(NodeId("n2"))
    assert (one.here_count, one.dead) == (2, set())


def test_chance_is_fair_and_repeatable() -> None:
    counts = Counter(Chance(seed).below(10) for seed in range(10_000))
    assert set(counts) == set(range(10))
    assert all(800 < count < 1200 for count in counts.values())
    one, same = Chance(3), Chance(3)
    assert [one.bits() for _ in range(5)] == [same.bits() for _ in range(5)]
    assert 0 <= Chance(3).fraction() < 1
