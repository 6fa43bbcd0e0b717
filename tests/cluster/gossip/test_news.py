import pytest

from sllmd.cluster.gossip.messages import Alive, Left, packed_bytes
from sllmd.cluster.gossip.news import News, retransmit_limit
from sllmd.core.ids import NodeId
from tests.cluster.gossip.seat import alive


@pytest.mark.parametrize(
    ("members", "limit"), [(1, 4), (2, 4), (3, 8), (9, 12), (99, 12), (999, 12), (1000, 16), (5000, 16)]
)
def test_how_often_news_is_told(members: int, limit: int) -> None:
    assert retransmit_limit(4, members) == limit


def test_told_so_often_and_then_no_more() -> None:
    news = News(100)
    news.add(alive("a"))
    assert [news.take(1000, 3) for _ in range(4)] == [[alive("a")]] * 3 + [[]]
    assert len(news) == 0


def test_the_newest_of_a_member_replaces_the_older() -> None:
    news = News(100)
    news.add(alive("a"))
    news.take(1000, 9)
    news.add(Left(NodeId("a"), 1))
    assert news.take(1000, 9) == [Left(NodeId("a"), 1)]


def test_least_told_first_then_newest() -> None:
    news = News(100)
    for name in "abc":
        news.add(alive(name))
    one = packed_bytes(alive("a"))
    assert news.take(one, 9) == [alive("c")]
    assert news.take(2 * one, 9) == [alive("b"), alive("a")]
    news.add(alive("d"))
    assert news.take(10 * one, 9) == [alive("d"), alive("a"), alive("b"), alive("c")]


def test_what_is_too_big_for_the_rest_waits() -> None:
    news = News(100)
    big, small = alive("a", meta=bytes(500)), alive("b")
    news.add(small)
    news.add(big)
    assert news.take(packed_bytes(small), 9) == [small]
    assert news.take(1000, 9) == [big, small]


def test_room_is_never_exceeded() -> None:
    news = News(1000)
    for number in range(200):
        news.add(alive(f"n{number}", meta=bytes(number)))
    while taken := news.take(1341, 4):
        assert sum(packed_bytes(claim) for claim in taken) <= 1341


def test_a_full_queue_gives_up_what_was_told_most() -> None:
    news = News(3)
    for name in "abc":
        news.add(alive(name))
        if name == "a":
            news.take(1000, 9)
    news.add(alive("d"))
    assert {claim.node for claim in news.take(1000, 9) if isinstance(claim, Alive)} == {"b", "c", "d"}
