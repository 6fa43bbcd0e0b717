"""Followers of a feed: where they begin, what they miss, that nobody slows the others down."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sllmd.core.errors import QueueFull
from sllmd.telemetry.feed import READERS_MAX, Feed, Place


async def rest(feed: Feed, place: Place, **options) -> list:
    """What is there now, as the texts of entries and ``(lost,)`` for gaps."""
    return [
        (entry["lost"],) if entry.get("kind") == "gap" else entry["text"]
        async for entry in feed.read(place, follow=False, **options)
    ]


def filled(count: int, entries_max: int = 4) -> Feed:
    times = iter(range(100, 1000))
    feed = Feed(entries_max, clock=lambda: next(times))
    for number in range(1, count + 1):
        feed.add({"text": number})
    return feed


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (Place(), []),
        (Place(newest=2), [5, 6]),
        (Place(newest=99), [3, 4, 5, 6]),
        (Place(since_seconds=104), [5, 6]),
        (Place(since_seconds=0), [(2,), 3, 4, 5, 6]),
        (Place(since_seconds=999), []),
        (Place(after="{run}-4"), [5, 6]),
        (Place(after="{run}-6"), []),
        (Place(after="{run}-1"), [(1,), 3, 4, 5, 6]),
        (Place(after="elsewhere-4"), [(None,), 3, 4, 5, 6]),
        (Place(after="{run}-7"), [(None,), 3, 4, 5, 6]),
        (Place(after="{run}-99999999999999999999"), [(None,), 3, 4, 5, 6]),
        (Place(after="²"), [(None,), 3, 4, 5, 6]),
    ],
)
async def test_where_a_reader_begins(place: Place, expected: list) -> None:
    feed = filled(6)
    after = place.after and place.after.replace("{run}", feed.run)
    assert await rest(feed, Place(after, place.since_seconds, place.newest)) == expected


async def test_since_before_the_first_is_no_gap_while_nothing_is_forgotten() -> None:
    assert await rest(filled(3), Place(since_seconds=0)) == [1, 2, 3]


async def test_a_slow_reader_is_told_what_it_missed_and_goes_on() -> None:
    feed = filled(0)
    reading = feed.read()
    first = asyncio.ensure_future(anext(reading))
    await asyncio.sleep(0)
    for number in range(1, 11):
        feed.add({"text": number})
    assert (await first)["lost"] == 6
    assert [(await anext(reading))["text"] for _ in range(4)] == [7, 8, 9, 10]
    await reading.aclose()
    assert feed.readers == 0


async def test_only_what_is_wanted() -> None:
    assert await rest(filled(4), Place(newest=4), wanted=lambda entry: entry["text"] % 2 == 0) == [2, 4]


async def test_what_every_entry_carries_unless_it_says_otherwise_itself() -> None:
    feed = Feed(1, always={"node": "here", "told_by": "here"})
    for entry in ({"text": "lost"}, {"text": "a"}):
        feed.add(entry)
    gap, told = [entry async for entry in feed.read(Place(since_seconds=0), follow=False)]
    assert (gap["kind"], gap["node"], told["node"], told["text"]) == ("gap", "here", "here", "a")
    feed.add({"text": "b", "node": "there"})
    [told] = [entry async for entry in feed.read(Place(newest=1), follow=False)]
    assert (told["node"], told["told_by"]) == ("there", "here")


async def test_entries_of_other_threads_arrive() -> None:
    feed = Feed(10)
    reading = feed.read()
    first = asyncio.ensure_future(anext(reading))
    await asyncio.sleep(0)
    thread = threading.Thread(target=feed.add, args=({"text": "from afar"},))
    thread.start()
    async with asyncio.timeout(60):
        assert (await first)["text"] == "from afar"
    thread.join()
    await reading.aclose()


async def test_readers_are_bounded() -> None:
    feed = Feed(4)
    readings = [feed.read() for _ in range(READERS_MAX)]
    waiting = [asyncio.ensure_future(anext(reading)) for reading in readings]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await anext(feed.read())
    feed.add({"text": "x"})
    await asyncio.gather(*waiting)
    for reading in readings:
        await reading.aclose()
