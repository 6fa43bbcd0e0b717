import pytest

from sllmd.cluster.gossip.health import Health
from sllmd.cluster.gossip.settings import GossipSettings
from sllmd.cluster.gossip.suspicion import Suspicion
from sllmd.core.ids import NodeId

SETTINGS = GossipSettings()


@pytest.mark.parametrize(
    ("members", "waits"),
    [
        (3, [4.0, 4.0, 4.0]),  # nobody who could confirm
        (4, [24.0, 11.4, 4.0]),
        (1000, [72.0, 34.1, 12.0]),
        (5000, [88.8, 42.1, 14.8]),
    ],
)
def test_confirmations_shorten_the_wait(members: int, waits: list[float]) -> None:
    suspicion = Suspicion.begin(SETTINGS, members, 100.0, NodeId("a"))
    measured = []
    for source in ("a", "b", "c"):
        suspicion.confirm(NodeId(source))
        measured.append(round(suspicion.deadline_seconds - 100.0, 1))
    assert measured == waits


def test_the_same_member_confirms_nothing() -> None:
    suspicion = Suspicion.begin(SETTINGS, 100, 0.0, NodeId("a"))
    before = suspicion.deadline_seconds
    assert not suspicion.confirm(NodeId("a"))
    assert suspicion.deadline_seconds == before
    assert suspicion.confirm(NodeId("b"))
    assert not suspicion.confirm(NodeId("b"))


def test_no_more_confirmations_than_wanted() -> None:
    suspicion = Suspicion.begin(SETTINGS, 100, 0.0, NodeId("a"))
    assert [suspicion.confirm(NodeId(name)) for name in "bcde"] == [True, True, False, False]


def test_health_stays_in_its_bounds() -> None:
    health = Health(8)
    health.better()
    assert health.factor == 1
    health.worse(3)
    health.worse(30)
    assert health.factor == 9
    health.better()
    assert health.score == 7
