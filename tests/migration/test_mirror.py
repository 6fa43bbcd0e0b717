"""Copies of streams: what is kept, what is refused, who may go on, and who keeps which."""

from __future__ import annotations

from collections import Counter

from sllmd.core.ids import NodeId
from sllmd.migration.mirror import News, Shelf, Told, keepers

HEAD = b"how to go on"


def shelf(**changes: float) -> Shelf:
    limits = {"copies_max": 2, "bytes_max": 1000, "kept_seconds": 60.0} | changes
    return Shelf(**limits)  # type: ignore[arg-type]


def tell(
    where: Shelf,
    *items: int,
    start: int = 0,
    name: str = "s",
    term: int = 1,
    head: bytes | None = None,
    now: float = 0.0,
    over: bool = False,
    item_bytes: int | None = None,
) -> Told:
    news = News(name, term, head, [(0, start, items)], over)
    size = len(items) * 8 if item_bytes is None else item_bytes
    return where.put(news, item_bytes=size, now_seconds=now)


def test_news_continue_a_copy_and_what_is_known_changes_nothing() -> None:
    kept = shelf()
    assert tell(kept, 7, 8) is Told.UNKNOWN
    assert tell(kept, 7, 8, head=HEAD) is Told.KEPT
    assert tell(kept, 9, 9, 9, start=1) is Told.KEPT
    copy = kept.find("s")
    assert copy is not None
    assert (copy.items, copy.counts, copy.head) == ([[7, 8, 9, 9]], (4,), HEAD)
    assert tell(kept, 1, start=6) is Told.UNKNOWN, "two are missing"
    assert kept.find("s") is None
    assert kept.size_bytes == 0


def test_who_takes_a_copy_owns_the_stream_and_the_router_before_hears_so() -> None:
    kept = shelf()
    tell(kept, 7, head=HEAD)
    taken = kept.take("s", now_seconds=1)
    assert taken is not None
    assert taken.term == 2
    assert tell(kept, 8, start=1) is Told.TAKEN
    assert tell(kept, 8, start=1, term=2) is Told.KEPT
    assert kept.take("other", now_seconds=1) is None
    # A router that took it from elsewhere, and knows more, tells all of it.
    assert tell(kept, 7, 8, 9, term=5) is Told.UNKNOWN
    assert tell(kept, 7, 8, 9, term=5, head=HEAD) is Told.KEPT
    assert tell(kept, 9, start=2, term=2) is Told.TAKEN


def test_count_bytes_and_time_are_bounded() -> None:
    kept = shelf()
    tell(kept, 1, name="a", head=HEAD)
    tell(kept, 1, name="b", head=HEAD)
    assert tell(kept, 1, name="c", head=HEAD) is Told.FULL, "none that runs goes for another"
    tell(kept, name="a", over=True)
    assert tell(kept, 1, name="c", head=HEAD) is Told.KEPT
    assert kept.find("a") is None
    assert tell(kept, 2, name="c", start=1, item_bytes=2000) is Told.FULL
    assert kept.find("c") is None
    assert tell(kept, 2, name="b", start=1, now=50) is Told.KEPT
    assert kept.take("b", now_seconds=100) is not None
    assert kept.take("b", now_seconds=111) is None
    assert (len(kept), kept.size_bytes) == (0, 0)


def test_all_nodes_agree_on_a_keeper_and_the_load_is_even() -> None:
    nodes = [NodeId(f"node-{number}") for number in range(5)]
    names = [f"stream-{number}" for number in range(2000)]
    first = {name: keepers(name, nodes)[0] for name in names}
    assert all(keepers(name, reversed(nodes))[0] == first[name] for name in names[:50])
    assert min(Counter(first.values()).values()) > 300
    for name in names:
        without = keepers(name, nodes[1:])[0]
        assert without == first[name] or first[name] == nodes[0]
