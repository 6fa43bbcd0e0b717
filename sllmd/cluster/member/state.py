"""A member's catalogue: what was agreed, carried out in order, snapshots taken over and taken.

A snapshot is read, and written, while the loop goes on; what was agreed after one that is being read waits
for it. A node that starts has ten thousand entries to carry out: it does so in many turns of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from sllmd.cluster.catalogue import Catalogue, apply, apply_bytes, restore, snapshot, unpack_command
from sllmd.cluster.catalogue.commands import Command
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.journal.snapshots import describe
from sllmd.cluster.member.disk import Disk
from sllmd.cluster.raft.entries import Entry, EntryKind, Membership, SnapshotMeta
from sllmd.cluster.raft.events import Apply, ReadReady, Restore
from sllmd.core.errors import JournalCorrupt, ProtocolError

_log = structlog.get_logger(__name__)

APPLY_MAX = 500
"""Entries carried out in one turn of the loop."""


@dataclass(frozen=True, slots=True)
class Around:
    """What the state asks and tells."""

    advanced: Callable[[], None]
    carried_out: Callable[[Command, Result], None]
    restored: Callable[[], None]
    epoch_changed: Callable[[], None]
    may_read: Callable[[int], None]
    """A read of this number may be answered from the state."""
    saved: Callable[[SnapshotMeta], None]
    """A snapshot of the state is durable."""
    members_at: Callable[[int], Membership | None]
    """The membership in force at an index; None where the log no longer reaches."""
    spawn: Callable[[Coroutine[Any, Any, None]], None]


class State:
    """The catalogue after the entry at ``position``."""

    def __init__(self, disk: Disk, around: Around) -> None:
        snapshot_meta = disk.restored.snapshot
        self.catalogue = disk.catalogue
        self.position = snapshot_meta.index if snapshot_meta else 0
        self.term = snapshot_meta.term if snapshot_meta else 0
        self._loop = asyncio.get_running_loop()
        self._journal, self._limits = disk.journal, disk.settings
        self._around = around
        self._agreed: deque[Apply | Restore | ReadReady] = deque()
        self._held = False
        """What was agreed waits: a snapshot is being read, or others on the loop have their turn."""
        self._since_snapshot = [0, 0]  # entries and their bytes
        self._saving = False
        self._stopped = False

    def take(self, action: Apply | Restore | ReadReady) -> None:
        """Carry out what was agreed, after everything before it."""
        if isinstance(action, Apply):
            entries = action.entries
            starts = range(0, len(entries), APPLY_MAX)
            self._agreed.extend(Apply(entries[start : start + APPLY_MAX]) for start in starts)
        else:
            self._agreed.append(action)
        if not self._held:
            self._go_on()

    def stop(self) -> None:
        """Carry out nothing more."""
        self._stopped = True

    def _go_on(self) -> None:
        self._held = False
        done = 0
        while self._agreed and not self._stopped:
            if done >= APPLY_MAX:
                self._held = True
                self._loop.call_soon(self._go_on)
                return
            match self._agreed.popleft():
                case Apply(entries):
                    self._apply(entries)
                    done += len(entries)
                case ReadReady(read_id):
                    self._around.may_read(read_id)
                case Restore(meta):
                    self._held = True
                    self._around.spawn(self._restore(meta))
                    return

    async def _restore(self, meta: SnapshotMeta) -> None:
        data = await self._journal.read_snapshot(meta)
        try:
            self.catalogue = await asyncio.to_thread(restore, data)
        except Exception as error:  # a state that stops half-way must not look like one that goes on
            raise JournalCorrupt(f"the snapshot at {meta.index} cannot be taken over: {error}") from error
        self.position, self.term = meta.index, meta.term
        self._since_snapshot = [0, 0]
        _log.info("took over a snapshot", position=meta.index, bytes=meta.size_bytes)
        self._around.advanced()
        self._around.restored()
        self._around.epoch_changed()
        self._go_on()

    def _apply(self, entries: tuple[Entry, ...]) -> None:
        outcomes: list[tuple[Command, Result]] = []
        size_bytes, epoch = 0, self.catalogue.epoch
        for entry in entries:
            size_bytes += len(entry.data)
            if entry.kind is EntryKind.COMMAND:
                self._apply_command(entry.data, outcomes)
        self.position, self.term = entries[-1].index, entries[-1].term
        self._around.advanced()
        for command, result in outcomes:
            self._around.carried_out(command, result)
        if self.catalogue.epoch != epoch:
            self._around.epoch_changed()
        self._since_snapshot[0] += len(entries)
        self._since_snapshot[1] += size_bytes
        self._save_if_due()

    def _apply_command(self, data: bytes, outcomes: list[tuple[Command, Result]]) -> None:
        try:
            command = unpack_command(data)
        except ProtocolError as error:
            self.catalogue, _ = apply_bytes(self.catalogue, data)
            _log.warning("a command that this release cannot read was passed over", reason=str(error))
            return
        self.catalogue, result = apply(self.catalogue, command)
        outcomes.append((command, result))

    def _save_if_due(self) -> None:
        entries, size_bytes = self._since_snapshot
        due = entries >= self._limits.snapshot_entries or size_bytes >= self._limits.snapshot_bytes
        members = self._around.members_at(self.position) if due and not self._saving else None
        if members is not None:
            self._saving = True
            self._since_snapshot = [0, 0]
            self._around.spawn(self._save(self.catalogue, self.position, self.term, members))

    async def _save(self, state: Catalogue, index: int, term: int, members: Membership) -> None:
        """The catalogue never changes in place: a thread may write it down while the loop goes on."""
        try:
            data = await asyncio.to_thread(snapshot, state)
            meta = describe(index, term, members, data)
            if await self._journal.save_snapshot(meta, data):
                self._around.saved(meta)
        finally:
            self._saving = False
