"""Snapshot files: ``snapshot-<index>-<term>-<checksum>``, whole or not there.

A file is written under a ``.partial`` name, synced, and renamed. Its name and size come from its
``SnapshotMeta``, which the write-ahead log keeps; so a file holds nothing but the state machine's bytes.
"""

from __future__ import annotations

import xxhash

from sllmd.cluster.journal.files import Files
from sllmd.cluster.raft.entries import Membership, SnapshotMeta
from sllmd.core.errors import JournalCorrupt

READ_BYTES = 1 << 20
"""Checksums are taken over parts of this size, so that a large snapshot never lies in memory twice."""


def describe(index: int, term: int, members: Membership, data: bytes) -> SnapshotMeta:
    """The meta of a state machine's bytes."""
    return SnapshotMeta(index, term, members, len(data), xxhash.xxh3_64_intdigest(data))


def file_name(meta: SnapshotMeta) -> str:
    """Where a snapshot lies."""
    return f"snapshot-{meta.index:016x}-{meta.term:016x}-{meta.checksum:016x}"


class SnapshotFiles:
    """Snapshots beside the write-ahead log."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def save(self, meta: SnapshotMeta, data: bytes) -> None:
        """Write a snapshot of this node's own."""
        partial = file_name(meta) + ".partial"
        self._files.write(partial, 0, data)
        self._files.truncate(partial, len(data))
        self._publish(partial, file_name(meta))

    def write_part(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """Write a part of a received one; offset 0 begins anew."""
        partial = file_name(meta) + ".partial"
        if offset == 0:
            self._files.remove(partial)
        self._files.write(partial, offset, data)

    def finish(self, meta: SnapshotMeta) -> bool:
        """Check a received one and make it durable; False, and gone, where its bytes are wrong."""
        partial = file_name(meta) + ".partial"
        if self._checksum(partial) != (meta.size_bytes, meta.checksum):
            self._files.remove(partial)
            return False
        self._publish(partial, file_name(meta))
        return True

    def read(self, meta: SnapshotMeta) -> bytes:
        """All of it; raises JournalCorrupt where it is not what was written."""
        self.check(meta)
        return self._files.read(file_name(meta))

    def read_part(self, meta: SnapshotMeta, offset: int, bytes_max: int) -> bytes | None:
        """A part to send; None where this snapshot is gone."""
        if file_name(meta) not in self._files.names():
            return None
        return self._files.read(file_name(meta), offset, bytes_max)

    def check(self, meta: SnapshotMeta) -> None:
        """Raises JournalCorrupt where the snapshot is not there or not what was written."""
        name = file_name(meta)
        present = name in self._files.names()
        if not present or self._checksum(name) != (meta.size_bytes, meta.checksum):
            raise JournalCorrupt(
                f"the snapshot {name} is {'corrupt' if present else 'missing'}",
                hint="move this node's cluster data away and let it join again",
            )

    def remove_all_but(self, keep: set[SnapshotMeta]) -> None:
        """Remove older snapshots, and parts of unfinished ones that are older still."""
        newest = max(keep, key=lambda meta: meta.index)
        wanted = {file_name(meta) for meta in keep}
        for name in self._files.names():
            if name.startswith("snapshot-") and name not in wanted and name < file_name(newest):
                self._files.remove(name)

    def _publish(self, partial: str, name: str) -> None:
        self._files.sync(partial)
        self._files.rename(partial, name)
        self._files.sync_names()

    def _checksum(self, name: str) -> tuple[int, int]:
        digest, offset = xxhash.xxh3_64(), 0
        while part := self._files.read(name, offset, READ_BYTES):
            digest.update(part)
            offset += len(part)
        return offset, digest.intdigest()
