"""Copies of other routers' streams, for the day that a router dies, and who keeps which. Pure.

A copy is a head, which tells how to go on, and the events of each choice so far, each under its index. Its
``term`` counts the routers that the stream has had: whoever takes a copy owns the stream from then on, and
what a router of an older term still tells is refused, by which it hears that the stream is no longer its own.
Bounded in count, bytes and time; what does not fit is not kept, and its router is told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import Any

from sllmd.core.ids import NodeId

Item = Any
"""An event as it travels; a copy does not look into it."""
ITEM_BYTES = 24
"""Taken for an item whose size does not matter: a token is an index and an id."""


class Told(Enum):
    """What became of news."""

    KEPT = "kept"
    UNKNOWN = "unknown"
    """There is no copy that this continues: tell all of it, head first."""
    FULL = "full"
    """There is no room."""
    TAKEN = "taken"
    """Another router has the stream now."""


@dataclass(frozen=True, slots=True)
class News:
    """Of one stream: of each choice, the items from an index on."""

    stream_id: str
    term: int
    head: bytes | None
    """With the first news."""
    choices: Sequence[tuple[int, int, Sequence[Item]]]
    """Choice, index of its first item, items."""
    over: bool = False
    """No more follows."""


@dataclass(slots=True)
class Copy:
    """One stream, as far as it was told."""

    term: int
    head: bytes
    touched_seconds: float
    items: list[list[Item]] = field(default_factory=list)
    over: bool = False
    size_bytes: int = 0

    @property
    def counts(self) -> tuple[int, ...]:
        """Items of each choice."""
        return tuple(map(len, self.items))


class Shelf:
    """The copies that one node keeps."""

    def __init__(self, *, copies_max: int, bytes_max: int, kept_seconds: float) -> None:
        self.size_bytes = 0
        self._copies: OrderedDict[str, Copy] = OrderedDict()
        """The one touched longest ago first."""
        self._copies_max = copies_max
        self._bytes_max = bytes_max
        self._kept_seconds = kept_seconds

    def __len__(self) -> int:
        return len(self._copies)

    def find(self, stream_id: str) -> Copy | None:
        """The copy of this stream."""
        return self._copies.get(stream_id)

    def put(self, news: News, *, item_bytes: int, now_seconds: float) -> Told:
        """Write down what is new. ``item_bytes``: of all items together."""
        self._expire(now_seconds)
        copy = self._copies.get(news.stream_id)
        if copy is not None and news.term < copy.term:
            return Told.TAKEN
        if copy is None or news.term > copy.term:
            if news.head is None:
                return Told.UNKNOWN
            size_bytes = len(news.head) + item_bytes
            if not self._make_room(size_bytes, new=True):
                return Told.FULL
            self._drop(news.stream_id)
            copy = Copy(news.term, news.head, now_seconds)
            self._copies[news.stream_id] = copy
            self._grow(copy, len(news.head))
        elif not self._make_room(item_bytes, new=False):
            self._drop(news.stream_id)
            return Told.FULL
        if not _extend(copy, news.choices):
            self._drop(news.stream_id)
            return Told.UNKNOWN
        self._grow(copy, item_bytes)
        copy.over = copy.over or news.over
        copy.touched_seconds = now_seconds
        self._copies.move_to_end(news.stream_id)
        return Told.KEPT

    def take(self, stream_id: str, *, now_seconds: float) -> Copy | None:
        """The copy, for who goes on with it: its term is the taker's, and older routers are shut out."""
        self._expire(now_seconds)
        copy = self._copies.get(stream_id)
        if copy is not None:
            copy.term += 1
        return copy

    def _grow(self, copy: Copy, size_bytes: int) -> None:
        copy.size_bytes += size_bytes
        self.size_bytes += size_bytes

    def _drop(self, stream_id: str) -> None:
        copy = self._copies.pop(stream_id, None)
        if copy is not None:
            self.size_bytes -= copy.size_bytes

    def _expire(self, now_seconds: float) -> None:
        while self._copies:
            oldest = next(iter(self._copies))
            if self._copies[oldest].touched_seconds + self._kept_seconds > now_seconds:
                return
            self._drop(oldest)

    def _make_room(self, size_bytes: int, *, new: bool) -> bool:
        """Streams that are over go first, the oldest before others; one that runs never goes for another."""
        while self.size_bytes + size_bytes > self._bytes_max or len(self._copies) + new > self._copies_max:
            over = next((name for name, copy in self._copies.items() if copy.over), None)
            if over is None:
                return False
            self._drop(over)
        return True


def _extend(copy: Copy, choices: Iterable[tuple[int, int, Sequence[Item]]]) -> bool:
    """False: something between is missing. What is known already is left as it is."""
    for choice, start, items in choices:
        while len(copy.items) <= choice:
            copy.items.append([])
        known = copy.items[choice]
        if start > len(known):
            return False
        known += items[len(known) - start :]
    return True


def keepers(stream_id: str, nodes: Iterable[NodeId]) -> list[NodeId]:
    """``nodes`` in the order in which they keep this stream's copy (rendezvous hashing, Thaler 1998).

    All nodes draw the same order, and when one goes only its own streams change their keeper.
    """
    return sorted(nodes, key=lambda node: blake2b(f"{stream_id}/{node}".encode(), digest_size=8).digest())
