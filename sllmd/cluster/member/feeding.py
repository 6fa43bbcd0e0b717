"""What a member sends to a node without a log: the catalogue as it grows, or all of it first.

Items of the stream ``control.follow``, whose body is (position, term) of the newest entry that is known::

    ("snapshot", position, term, size, offset, bytes)    parts in order; then only what comes after it
    ("entries", position, term, (command, ...))          everything up to the entry at this position
    ("beat", epoch, leader, age, voters, learners)       at least every ``beat_seconds``, and on every change
    ("elsewhere", nodes)                                 this node keeps no log; these may
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from sllmd.cluster.catalogue import snapshot
from sllmd.cluster.member.settings import ControlSettings
from sllmd.cluster.member.shell import Shell
from sllmd.cluster.raft.entries import EntryKind

PART_BYTES = 256 * 1024
"""Of a snapshot in one item: below what a stream's item may hold."""
ENTRIES_MAX = 256
"""In one item."""
ENTRIES_BYTES_MAX = 256 * 1024


class Feed:
    """Streams of one member. Followers that begin at about the same time get the same snapshot's bytes."""

    def __init__(self, shell: Callable[[], Shell | None], settings: ControlSettings) -> None:
        self._shell = shell
        self._settings = settings
        self._taken: tuple[int, int, bytes] = (0, 0, b"")
        self._taking = asyncio.Lock()

    async def follow(self, position: int, term: int) -> AsyncGenerator[Any, None]:
        """See the module."""
        loop = asyncio.get_running_loop()
        told: Any = None
        beat_at = 0.0
        while (shell := self._shell()) is not None and shell.lost_reason is None:
            beat = _beat(shell)
            if beat[1:3] + beat[4:] != told or loop.time() >= beat_at:
                told, beat_at = beat[1:3] + beat[4:], loop.time() + self._settings.beat_seconds
                yield beat
            if position < shell.position:
                log = shell.raft.log
                if position < log.base_index or not log.matches(position, term):
                    position, term, data = await self._snapshot(shell)
                    for offset in range(0, max(len(data), 1), PART_BYTES):
                        part = data[offset : offset + PART_BYTES]
                        yield ("snapshot", position, term, len(data), offset, part)
                    continue
                position, term, commands = _entries(shell, position)
                yield ("entries", position, term, commands)
                continue
            if (term, position) >= (shell.term, shell.position):
                await shell.changed.wait(max(0.0, beat_at - loop.time()))
                continue
            position = 0  # of a log that was given up, and perhaps longer: begin with a snapshot

    async def _snapshot(self, shell: Shell) -> tuple[int, int, bytes]:
        """The state as bytes, not older than what the log still reaches."""
        async with self._taking:
            position, term, data = self._taken
            log = shell.raft.log
            if not data or position < log.base_index or not log.matches(position, term):
                state, position, term = shell.catalogue, shell.position, shell.term
                data = await asyncio.to_thread(snapshot, state)
                self._taken = (position, term, data)
            return position, term, data


def _beat(shell: Shell) -> tuple[Any, ...]:
    raft = shell.raft
    members = raft.membership
    return ("beat", raft.term, raft.leader or "", shell.age_seconds, members.voters, members.learners)


def _entries(shell: Shell, position: int) -> tuple[int, int, tuple[bytes, ...]]:
    """What follows ``position`` and is applied here."""
    count = min(ENTRIES_MAX, shell.position - position)
    entries = shell.raft.log.slice(position + 1, count, ENTRIES_BYTES_MAX)
    commands = tuple(entry.data for entry in entries if entry.kind is EntryKind.COMMAND)
    return entries[-1].index, entries[-1].term, commands
