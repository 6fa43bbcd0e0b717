"""Records back into what they stand for. Pure."""

from __future__ import annotations

from sllmd.cluster.journal.records import Agreed, Entries, Installed, Record, Taken
from sllmd.cluster.raft.entries import Entry, HardState, Restored, SnapshotMeta
from sllmd.core.errors import JournalCorrupt


class Replay:
    """Takes records in their order; ``restored`` is what they come to."""

    def __init__(self) -> None:
        self._hard_state = HardState(0, None)
        self._snapshot: SnapshotMeta | None = None
        self._entries: list[Entry] = []
        self._agreed = 0

    def take(self, record: Record) -> None:
        """One record."""
        match record:
            case HardState():
                self._hard_state = record
            case Entries(entries):
                self._replace(entries)
            case Agreed(index):
                self._agreed = index
            case Installed(meta):
                self._snapshot, self._entries = meta, []
            case Taken(meta):
                self._snapshot = meta
                self._entries = [entry for entry in self._entries if entry.index > meta.index]

    def _replace(self, entries: tuple[Entry, ...]) -> None:
        base = self._snapshot.index if self._snapshot else 0
        fresh = [entry for entry in entries if entry.index > base]
        if not fresh:
            return
        first = self._entries[0].index if self._entries else base + 1
        keep = fresh[0].index - first
        if 0 <= keep <= len(self._entries):
            self._entries[keep:] = fresh
        else:
            # Compaction removed the segments between: a later record must be of a snapshot that covers them.
            self._entries = fresh

    def restored(self) -> Restored:
        """Where a raft node takes up again; raises JournalCorrupt where entries are missing."""
        base = self._snapshot.index if self._snapshot else 0
        if self._entries and self._entries[0].index != base + 1:
            raise JournalCorrupt(
                f"the journal has a gap: entry {self._entries[0].index} follows {base}",
                hint="move this node's cluster data away and let it join again",
            )
        return Restored(self._hard_state, self._snapshot, tuple(self._entries), self._agreed)
