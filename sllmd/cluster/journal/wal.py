"""The journal as plain blocking calls: recover, append a group, take and receive snapshots, compact.

Knows nothing of threads: one caller at a time. After the first failed write or sync every further call
raises the same ``JournalFailed``: what is on the disk is unknown then, and only a restart finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sllmd.cluster.journal.files import Files
from sllmd.cluster.journal.frames import (
    SEGMENT_HEADER_BYTES,
    Torn,
    frame,
    read_frame,
    read_segment_header,
    segment_header,
)
from sllmd.cluster.journal.records import (
    Agreed,
    Entries,
    Installed,
    Record,
    Taken,
    pack_records,
    unpack_records,
)
from sllmd.cluster.journal.replay import Replay
from sllmd.cluster.journal.settings import JournalSettings
from sllmd.cluster.journal.snapshots import SnapshotFiles
from sllmd.cluster.raft.entries import HardState, Restored, SnapshotMeta
from sllmd.cluster.raft.events import Persist
from sllmd.core.errors import JournalCorrupt, JournalFailed


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found."""

    restored: Restored
    cut_bytes: int
    """Bytes of a torn last frame that were cut; they had been promised to nobody."""


@dataclass(slots=True)
class _Segment:
    """What compaction needs to know of a segment."""

    name: str
    first_sequence: int
    last_entry: int = 0


class Wal:
    """An open journal. ``recovered`` is what it held when it was opened."""

    def __init__(self, files: Files, settings: JournalSettings) -> None:
        """Read everything, cut a torn end; raises JournalCorrupt or JournalFailed."""
        self._files = files
        self.settings = settings
        self.snapshots = SnapshotFiles(files)
        self._segments: list[_Segment] = []
        self._sequence = 1
        self._offset = 0
        self._hard_state = HardState(0, None)
        self._agreed = Agreed(0)
        self._taken: list[SnapshotMeta] = []  # newest last; the one before it may still be on its way out
        self._failure: JournalFailed | None = None
        self.recovered = self._recover()

    # --- writing ---

    def append(self, group: Sequence[Persist]) -> None:
        """Make a group of writes durable with one sync."""
        records: list[Record] = []
        for persist in group:
            if persist.snapshot is not None:
                records.append(Installed(persist.snapshot))
            if persist.entries:
                records.append(Entries(persist.entries))
            if persist.hard_state is not None:
                records.append(persist.hard_state)
        agreed = max((persist.commit for persist in group), default=0)
        if agreed > self._agreed.index:
            records.append(Agreed(agreed))
        self._write(records)
        for persist in group:
            if persist.snapshot is not None:
                self._compact(persist.snapshot)

    def save_snapshot(self, meta: SnapshotMeta, data: bytes) -> bool:
        """Make a snapshot of this node's own durable and let go of what it covers.

        False, and nothing is done, where a newer one was installed while this one was made.
        """
        if self._taken and meta.index <= self._taken[-1].index:
            return False
        with _Failing(self):
            self.snapshots.save(meta, data)
        self._write([Taken(meta)])
        self._compact(meta)
        return True

    def write_snapshot_part(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """A part of a snapshot that is being received."""
        with _Failing(self):
            self.snapshots.write_part(meta, offset, data)

    def finish_snapshot(self, meta: SnapshotMeta) -> bool:
        """All parts are there; False where the checksum is wrong."""
        with _Failing(self):
            return self.snapshots.finish(meta)

    def _write(self, records: list[Record]) -> None:
        if not records:
            return
        with _Failing(self):
            if not self._segments or self._offset >= self.settings.segment_bytes:
                self._begin_segment()
            data = frame(self._sequence, pack_records(records))
            segment = self._segments[-1]
            self._files.write(segment.name, self._offset, data)
            self._files.sync(segment.name)
        self._offset += len(data)
        self._sequence += 1
        for record in records:
            self._note(record, segment)

    def _note(self, record: Record, segment: _Segment) -> None:
        match record:
            case HardState():
                self._hard_state = record
            case Agreed():
                self._agreed = record
            case Entries(entries):
                segment.last_entry = max(segment.last_entry, entries[-1].index)
            case Installed(meta) | Taken(meta):
                self._taken = [*self._taken[-1:], meta]

    def _begin_segment(self) -> None:
        """A segment repeats what older ones say besides entries, so that they may go."""
        name = f"wal-{self._sequence:016x}"
        carried: list[Record] = [Taken(meta) for meta in self._taken[-1:]]
        body = pack_records([*carried, self._hard_state, self._agreed])
        data = segment_header(self._sequence) + frame(self._sequence, body)
        self._files.write(name, 0, data)
        self._files.sync(name)
        self._files.sync_names()
        self._segments.append(_Segment(name, self._sequence))
        self._offset = len(data)
        self._sequence += 1

    def _compact(self, meta: SnapshotMeta) -> None:
        """Remove segments whose entries all lie behind the snapshot. Never the last one."""
        with _Failing(self):
            while len(self._segments) > 1 and self._segments[0].last_entry <= meta.index:
                self._files.remove(self._segments[0].name)
                self._files.sync_names()  # in this order on disk, too: no hole may open between segments
                del self._segments[0]
            self.snapshots.remove_all_but(set(self._taken))

    # --- reading ---

    def _recover(self) -> Recovered:
        names = [name for name in self._files.names() if name.startswith("wal-")]
        replay, cut = Replay(), 0
        for name in names:
            cut = self._read_segment(name, replay, is_last=name == names[-1])
        for one, other in pairwise(self._segments):
            if other.first_sequence <= one.first_sequence:
                raise JournalCorrupt(f"the journal's segments {one.name} and {other.name} are out of order")
        restored = replay.restored()
        self._hard_state = restored.hard_state
        if restored.snapshot is not None:
            self.snapshots.check(restored.snapshot)
            self._taken = [restored.snapshot]
        return Recovered(restored, cut)

    def _read_segment(self, name: str, replay: Replay, *, is_last: bool) -> int:
        data = self._files.read(name)
        first = read_segment_header(data, name)
        if isinstance(first, Torn):
            return self._cut(name, 0, len(data), is_last=is_last)
        if self._segments and first != self._sequence:
            raise JournalCorrupt(
                f"the journal is corrupt: {name} begins with frame {first}, not {self._sequence}",
                hint="a segment is missing; move this node's cluster data away and let it join again",
            )
        segment = _Segment(name, first)
        self._sequence, self._offset = first, SEGMENT_HEADER_BYTES
        while self._offset < len(data):
            found = read_frame(data, self._offset, self._sequence, name)
            if isinstance(found, Torn):
                self._segments.append(segment)
                return self._cut(name, found.offset, len(data), is_last=is_last)
            for record in unpack_records(found.body):
                replay.take(record)
                self._note(record, segment)
            self._offset, self._sequence = found.end, found.sequence + 1
        self._segments.append(segment)
        return 0

    def _cut(self, name: str, offset: int, size_bytes: int, *, is_last: bool) -> int:
        if not is_last:
            raise JournalCorrupt(
                f"the journal is corrupt: {name} ends at byte {offset}, and later segments follow",
                hint="move this node's cluster data away and let it join again",
            )
        if offset <= SEGMENT_HEADER_BYTES:
            self._drop(name)
        else:
            self._files.truncate(name, offset)
            self._files.sync(name)
        return size_bytes - offset

    def _drop(self, name: str) -> None:
        """Nothing in it was ever synced, not even the frame that a segment begins with."""
        self._segments = [segment for segment in self._segments if segment.name != name]
        self._files.remove(name)
        self._files.sync_names()
        if self._segments:
            self._offset = self._files.size_bytes(self._segments[-1].name)


class _Failing:
    """Remembers the first failure and refuses everything after it."""

    def __init__(self, wal: Wal) -> None:
        self._wal = wal

    def __enter__(self) -> None:
        if self._wal._failure is not None:
            raise self._wal._failure

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, JournalFailed):
            self._wal._failure = error
