"""A bounded memory of what happened, numbered, and readers who follow it at their own pace.

Nothing is kept for a reader but its place: one who reads too slowly finds that the feed has gone on, and is
told how many entries it missed. Ids name this run of the process, so that a place in another feed is never
taken for one in this. Entries may be added from any thread; following belongs to an event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sllmd.core.errors import QueueFull

Entry = Mapping[str, Any]

READERS_MAX = 64
"""At once, of one feed: each holds a piece and is woken by every entry."""
PIECE_ENTRIES = 256
"""Entries that a reader takes at a time."""
GAP = "gap"
"""The ``kind`` of what a reader gets in place of entries that it missed; its ``lost`` is None when nobody
knows how many."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reader begins: the first of these that is given; by default with what comes next."""

    after: str | None = None
    """An entry's id."""
    since_seconds: float | None = None
    """Unix time."""
    newest: int = 0
    """So many of the remembered ones."""


@dataclass(slots=True, eq=False)
class _Reader:
    loop: asyncio.AbstractEventLoop
    added: asyncio.Event


class Feed:
    """What happened lately."""

    def __init__(
        self, entries_max: int, *, always: Entry | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """``always``: in every entry, gaps too, that does not say otherwise itself."""
        self.run = os.urandom(4).hex()
        """Names this feed in ids."""
        self._always = always or {}
        self._clock = clock
        self._entries: deque[Entry] = deque(maxlen=entries_max)
        self._count = 0
        self._lock = threading.Lock()
        self._readers: set[_Reader] = set()

    @property
    def readers(self) -> int:
        """How many follow."""
        return len(self._readers)

    def add(self, entry: Entry) -> None:
        """One more; it gets an ``id`` and a ``time`` (Unix seconds) in front."""
        with self._lock:
            self._count += 1
            known = {"id": f"{self.run}-{self._count}", "time": self._clock(), **self._always}
            self._entries.append({**known, **entry})
        for reader in tuple(self._readers):
            with suppress(RuntimeError):  # its loop ended meanwhile
                reader.loop.call_soon_threadsafe(reader.added.set)

    async def read(
        self,
        place: Place = Place(),
        *,
        follow: bool = True,
        wanted: Callable[[Entry], bool] = lambda _: True,
    ) -> AsyncGenerator[Entry, None]:
        """Entries from ``place`` on that are ``wanted``, gaps among them; without end if ``follow``.

        Raises QueueFull when too many follow already.
        """
        if len(self._readers) >= READERS_MAX:
            raise QueueFull(f"{READERS_MAX} readers follow this already", retry_after_seconds=10)
        reader = _Reader(asyncio.get_running_loop(), asyncio.Event())
        self._readers.add(reader)
        try:
            number, gap = self._begin(place)
            if gap is not None:
                yield gap
            while True:
                reader.added.clear()
                lost, entries = self._from(number)
                if lost:
                    yield self._gap(lost, f"{lost} entries are gone: they were read too slowly, or too late")
                number += lost + len(entries)
                for entry in filter(wanted, entries):
                    yield entry
                if not entries:
                    if not follow:
                        return
                    await reader.added.wait()
        finally:
            self._readers.discard(reader)

    def _from(self, number: int) -> tuple[int, list[Entry]]:
        """How many entries from ``number`` on are gone, and a piece of those that are left."""
        with self._lock:
            oldest = self._oldest()
            lost = max(0, oldest - number)
            start = number + lost - oldest
            return lost, list(islice(self._entries, start, start + PIECE_ENTRIES))

    def _oldest(self) -> int:
        return self._count - len(self._entries) + 1

    def _begin(self, place: Place) -> tuple[int, Entry | None]:
        """The number to begin with, and a gap that has to be told before it."""
        with self._lock:
            oldest, entries = self._oldest(), list(self._entries)
        if place.after is not None:
            number = self._number(place.after)
            if number is not None:
                return number + 1, None
            return oldest, self._gap(
                None, "the last one read is of another daemon, or of this one before it was restarted"
            )
        if place.since_seconds is not None:
            early = sum(entry["time"] < place.since_seconds for entry in entries)
            forgotten = early == 0 and oldest > 1
            return oldest + early, self._gap(oldest - 1, "the oldest are forgotten") if forgotten else None
        return max(oldest, self._count + 1 - place.newest), None

    def _number(self, entry_id: str) -> int | None:
        """The number of one of this feed's own ids."""
        run, _, number = entry_id.rpartition("-")
        if run != self.run or not number.isascii() or not number.isdigit():
            return None
        known = len(number) <= len(str(self._count)) and int(number) <= self._count
        return int(number) if known else None

    def _gap(self, lost: int | None, text: str) -> Entry:
        known = {"id": None, "time": self._clock(), **self._always}
        return {**known, "kind": GAP, "lost": lost, "text": text}
