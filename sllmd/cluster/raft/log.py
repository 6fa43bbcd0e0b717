"""The log in memory: entries since a base, and which membership is in force. Pure.

Knows nothing of terms being right or wrong: the machine decides, the log keeps the books. The base is the
last place whose entry is gone; its term is remembered, because the entry after it must name it.
"""

from __future__ import annotations

from itertools import takewhile

from sllmd.cluster.raft.entries import (
    NOBODY,
    Entry,
    EntryKind,
    Membership,
    Restored,
    SnapshotMeta,
    decode_membership,
)
from sllmd.core.ids import NodeId


class RaftLog:
    """Entries ``base_index + 1 .. last_index``; all that is asked by index is answered in constant time."""

    def __init__(self, restored: Restored) -> None:
        self.snapshot: SnapshotMeta | None = restored.snapshot
        self.base_index = restored.snapshot.index if restored.snapshot else 0
        self.base_term = restored.snapshot.term if restored.snapshot else 0
        self._entries: list[Entry] = []
        self._memberships: list[tuple[int, Membership]] = [
            (self.base_index, restored.snapshot.membership if restored.snapshot else NOBODY)
        ]
        self._unsaved_from: int | None = None
        self.append(restored.entries)
        self.take_unsaved()  # it came from the disk

    @property
    def last_index(self) -> int:
        """Where the log ends."""
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        """The term of the last entry, or of the base."""
        return self._entries[-1].term if self._entries else self.base_term

    @property
    def membership(self) -> Membership:
        """The newest membership in the log, committed or not (thesis §4.1)."""
        return self._memberships[-1][1]

    @property
    def membership_index(self) -> int:
        """Where ``membership`` stands."""
        return self._memberships[-1][0]

    def membership_at(self, index: int) -> Membership:
        """The membership in force once everything up to ``index`` is."""
        return next(members for at, members in reversed(self._memberships) if at <= index)

    def was_voter_since(self, index: int, node: NodeId) -> bool:
        """Whether the node votes in the membership in force at ``index`` or in any later one."""
        in_force = self.membership_at(index)
        later = (members for at, members in self._memberships if at > index)
        return any(node in members.voters for members in (in_force, *later))

    def term_at(self, index: int) -> int | None:
        """The term of the entry at ``index``; None where the log does not reach, or no longer does."""
        place = index - self.base_index
        if place == 0:
            return self.base_term
        return self._entries[place - 1].term if 0 < place <= len(self._entries) else None

    def matches(self, index: int, term: int) -> bool:
        """Whether an entry of this term stands at this index: then all before it agree too (§5.3)."""
        return self.term_at(index) == term

    def is_current(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as up to date as this one (§5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def slice(self, first: int, entries_max: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from ``first`` on within the limits; at least one if there is one."""
        start = first - self.base_index - 1
        chosen = self._entries[start : start + entries_max]
        total = 0
        for count, entry in enumerate(chosen):
            total += len(entry.data)
            if count and total > bytes_max:
                return tuple(chosen[:count])
        return tuple(chosen)

    def range(self, first: int, last: int) -> tuple[Entry, ...]:
        """Entries ``first .. last``."""
        return tuple(self._entries[first - self.base_index - 1 : last - self.base_index])

    def bytes_between(self, first: int, last: int) -> int:
        """Bytes of data in entries ``first .. last``."""
        return sum(len(entry.data) for entry in self.range(first, last))

    def last_with_term_at_most(self, index: int, term: int) -> tuple[int, int]:
        """The highest place up to ``index`` whose term is not above ``term``, and that term.

        Both sides use it to skip a whole term of disagreement in one exchange (§5.3, last paragraphs).
        """
        index = min(index, self.last_index)
        while index > self.base_index and self._entries[index - self.base_index - 1].term > term:
            index -= 1
        found = self.term_at(index)
        return (index, found) if found is not None else (0, 0)

    def append(self, entries: tuple[Entry, ...]) -> None:
        """Put entries behind the last one."""
        for entry in entries:
            assert entry.index == self.last_index + 1, f"{entry} does not follow {self.last_index}"
            self._entries.append(entry)
            if entry.kind is EntryKind.MEMBERSHIP:
                self._memberships.append((entry.index, decode_membership(entry.data)))
        if entries and self._unsaved_from is None:
            self._unsaved_from = entries[0].index

    def first_conflict(self, entries: tuple[Entry, ...]) -> int:
        """How many of the entries stand in this log already."""
        return sum(1 for _ in takewhile(lambda entry: self.matches(entry.index, entry.term), entries))

    def truncate(self, first: int) -> None:
        """Forget the entry at ``first`` and everything after it."""
        del self._entries[first - self.base_index - 1 :]
        while self._memberships[-1][0] >= first:
            self._memberships.pop()
        if self._unsaved_from is not None and first < self._unsaved_from:
            self._unsaved_from = first

    def compact(self, index: int) -> None:
        """Forget entries up to ``index``; the snapshot must cover them."""
        if index <= self.base_index:
            return
        term = self.term_at(index)
        assert term is not None, f"compacting to {index} beyond {self.last_index}"
        del self._entries[: index - self.base_index]
        self.base_index, self.base_term = index, term
        in_force = self.membership_at(index)
        self._memberships = [(index, in_force)] + [item for item in self._memberships if item[0] > index]

    def reset(self, meta: SnapshotMeta) -> None:
        """Begin anew behind a received snapshot."""
        self._entries.clear()
        self.snapshot, self.base_index, self.base_term = meta, meta.index, meta.term
        self._memberships = [(meta.index, meta.membership)]
        self._unsaved_from = None

    def take_unsaved(self) -> tuple[Entry, ...]:
        """Entries that no ``Persist`` carries yet; from now on one does."""
        if self._unsaved_from is None:
            return ()
        entries = tuple(self._entries[self._unsaved_from - self.base_index - 1 :])
        self._unsaved_from = None
        return entries
