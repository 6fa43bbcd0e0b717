"""What was appended comes back, whole or not at all, over restarts, compaction and bad disks."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllmd.cluster.journal import DirectoryFiles, JournalSettings, Wal
from sllmd.cluster.journal.snapshots import describe, file_name
from sllmd.cluster.raft.entries import Entry, EntryKind, HardState, Restored, SnapshotMeta, membership
from sllmd.cluster.raft.events import Persist
from sllmd.core.errors import JournalCorrupt, JournalFailed
from sllmd.core.ids import NodeId
from tests.simulation.disk import SimDisk

SMALL = JournalSettings(segment_bytes=600)
MEMBERS = membership({NodeId("a")}, set())


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(
        Entry(index, term, EntryKind.COMMAND, f"{index}/{term}".encode()) for index in range(first, last + 1)
    )


def persist(*, term: int | None = None, vote: str | None = None, log: tuple[Entry, ...] = ()) -> Persist:
    hard_state = None if term is None else HardState(term, None if vote is None else NodeId(vote))
    return Persist(1, hard_state, None, log, ())


def snapshot_of(index: int, term: int = 1) -> tuple[SnapshotMeta, bytes]:
    data = f"state after {index}".encode() * 20
    return describe(index, term, MEMBERS, data), data


def reopen(disk: SimDisk) -> Wal:
    return Wal(disk, SMALL)


def test_an_empty_directory_is_an_empty_journal() -> None:
    assert reopen(SimDisk()).recovered.restored == Restored(HardState(0, None), None, ())


def test_votes_and_entries_come_back_and_later_entries_replace() -> None:
    disk = SimDisk()
    wal = reopen(disk)
    wal.append([persist(term=1, vote="a", log=entries(1, 5))])
    wal.append([persist(term=2), persist(log=entries(4, 4, term=2))])
    restored = reopen(disk).recovered.restored
    assert restored == Restored(HardState(2, None), None, entries(1, 3) + entries(4, 4, term=2))


def test_a_group_is_one_sync() -> None:
    class Counting(SimDisk):
        syncs = 0

        def sync(self, name: str) -> None:
            self.syncs += 1
            super().sync(name)

    disk = Counting()
    wal = Wal(disk, JournalSettings())
    wal.append([persist(log=entries(1, 1))])  # begins the segment, too
    before = disk.syncs
    wal.append([persist(log=entries(index, index)) for index in range(2, 50)])
    assert disk.syncs == before + 1


def test_segments_follow_each_other_and_go_behind_a_snapshot() -> None:
    disk = SimDisk()
    wal = reopen(disk)
    for index in range(1, 101):
        wal.append([persist(term=index, log=entries(index, index, term=index))])
    assert len(disk.names()) >= 10
    meta, data = snapshot_of(90, 90)
    wal.save_snapshot(meta, data)
    assert len([name for name in disk.names() if name.startswith("wal-")]) < 5
    restored = reopen(disk).recovered.restored
    assert (restored.hard_state.term, restored.snapshot) == (100, meta)
    assert [entry.index for entry in restored.entries] == list(range(91, 101))


def test_two_snapshots_and_the_segments_between_gone() -> None:
    """A segment that begins with the older snapshot may be the first one left: only the newest counts."""
    disk = SimDisk()
    wal = reopen(disk)
    for index in range(1, 121):
        wal.append([persist(log=entries(index, index))])
        if index in (40, 100):
            meta, data = snapshot_of(index)
            wal.save_snapshot(meta, data)
    restored = reopen(disk).recovered.restored
    assert restored.snapshot is not None
    assert restored.snapshot.index == 100
    assert [entry.index for entry in restored.entries] == list(range(101, 121))


def test_a_received_snapshot_takes_the_place_of_the_log() -> None:
    disk = SimDisk()
    wal = reopen(disk)
    wal.append([persist(term=1, log=entries(1, 30))])
    meta, data = snapshot_of(20, 3)
    for offset in range(0, len(data), 64):
        wal.write_snapshot_part(meta, offset, data[offset : offset + 64])
    assert wal.finish_snapshot(meta)
    wal.append([Persist(2, HardState(3, None), meta, entries(21, 22, term=3), ())])
    wal = reopen(disk)
    assert wal.recovered.restored == Restored(HardState(3, None), meta, entries(21, 22, term=3))
    assert wal.snapshots.read(meta) == data


def test_a_snapshot_that_a_received_one_overtook_is_not_saved() -> None:
    disk = SimDisk()
    wal = reopen(disk)
    wal.append([persist(log=entries(1, 10))])
    received, data = snapshot_of(20, 2)
    wal.write_snapshot_part(received, 0, data)
    assert wal.finish_snapshot(received)
    wal.append([Persist(2, None, received, entries(21, 21, term=2), ())])
    assert not wal.save_snapshot(*snapshot_of(9))
    assert reopen(disk).recovered.restored == Restored(HardState(0, None), received, entries(21, 21, term=2))


def test_a_received_snapshot_with_a_wrong_byte_is_refused_and_gone() -> None:
    disk = SimDisk()
    wal = reopen(disk)
    meta, data = snapshot_of(20)
    wal.write_snapshot_part(meta, 0, b"?" + data[1:])
    assert not wal.finish_snapshot(meta)
    assert not [name for name in disk.names() if name.startswith("snapshot")]


@pytest.mark.parametrize("damage", ["flip", "missing"])
def test_a_damaged_snapshot_refuses_to_start(damage: str) -> None:
    disk = SimDisk()
    wal = reopen(disk)
    wal.append([persist(log=entries(1, 30))])
    meta, data = snapshot_of(20)
    wal.save_snapshot(meta, data)
    if damage == "flip":
        disk.files[file_name(meta)].data[5] ^= 4
    else:
        del disk.files[file_name(meta)]
    with pytest.raises(JournalCorrupt, match="snapshot"):
        reopen(disk)


def test_a_missing_segment_refuses_to_start() -> None:
    disk = SimDisk()
    wal = reopen(disk)
    for index in range(1, 60):
        wal.append([persist(log=entries(index, index))])
    names = [name for name in disk.names() if name.startswith("wal-")]
    for lost in names[:-1]:
        hurt = SimDisk()
        hurt.files = {name: file for name, file in disk.files.items() if name != lost}
        with pytest.raises(JournalCorrupt):
            reopen(hurt)


def test_an_earlier_segment_that_ends_early_refuses_to_start() -> None:
    disk = SimDisk()
    wal = reopen(disk)
    for index in range(1, 60):
        wal.append([persist(log=entries(index, index))])
    first = disk.names()[0]
    disk.truncate(first, disk.size_bytes(first) - 3)
    with pytest.raises(JournalCorrupt, match="later segments follow"):
        reopen(disk)


def test_every_cut_gives_a_prefix_and_can_be_written_on() -> None:
    disk = SimDisk()
    wal = Wal(disk, JournalSettings())
    for index in range(1, 9):
        wal.append([persist(log=entries(index, index))])
    (name,) = disk.names()
    data = bytes(disk.files[name].data)
    for size in range(len(data)):
        hurt = SimDisk()
        hurt.write(name, 0, data[:size])
        wal = reopen(hurt)
        found = wal.recovered.restored.entries
        assert found == entries(1, len(found))
        wal.append([persist(log=entries(len(found) + 1, len(found) + 2))])
        assert reopen(hurt).recovered.restored.entries == entries(1, len(found) + 2)


def test_after_a_failed_sync_nothing_is_tried_again() -> None:
    disk = SimDisk()
    wal = reopen(disk)
    wal.append([persist(log=entries(1, 1))])
    disk.failing = "Input/output error"
    with pytest.raises(JournalFailed, match="Input/output error"):
        wal.append([persist(log=entries(2, 2))])
    disk.failing = ""
    with pytest.raises(JournalFailed, match="Input/output error"):
        wal.append([persist(log=entries(2, 2))])
    meta, data = snapshot_of(1)
    with pytest.raises(JournalFailed, match="Input/output error"):
        wal.save_snapshot(meta, data)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "rewrite", "vote", "snapshot", "restart", "crash"]),
        st.integers(1, 6),
    ),
    max_size=40,
)


@given(steps=STEPS, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_any_course_of_events_comes_back(steps: list[tuple[str, int]], seed: int) -> None:
    """Against a model: everything that was synced is there, whatever happened in between."""
    disk, random = SimDisk(), Random(seed)
    wal = reopen(disk)
    hard_state, base, log = HardState(0, None), 0, ()
    for kind, count in steps:
        last = base + len(log)
        if kind == "append":
            fresh = entries(last + 1, last + count)
            wal.append([persist(log=fresh)])
            log += fresh
        elif kind == "rewrite" and log:
            first = max(base + 1, last + 1 - count)
            fresh = entries(first, first, term=last + count)
            wal.append([persist(log=fresh)])
            log = log[: first - base - 1] + fresh
        elif kind == "vote":
            hard_state = HardState(hard_state.term + count, NodeId("a"))
            wal.append([Persist(1, hard_state, None, (), ())])
        elif kind == "snapshot" and log:
            cut = min(count, len(log))
            meta, data = snapshot_of(base + cut, log[cut - 1].term)
            wal.save_snapshot(meta, data)
            base, log = base + cut, log[cut:]
        elif kind in ("restart", "crash"):
            if kind == "crash":
                disk.syncs_lie = True
                wal.append([persist(log=entries(last + 1, last + count))])
                disk.syncs_lie = False
                disk.crash(random)
            wal = reopen(disk)
            restored = wal.recovered.restored
            assert restored.hard_state == hard_state
            assert restored.entries[: len(log)] == log
            assert len(restored.entries) in (len(log), len(log) + count)
            log = restored.entries


def test_a_real_directory(tmp_path: Path) -> None:
    files = DirectoryFiles(tmp_path / "journal")
    wal = Wal(files, SMALL)
    wal.append([persist(term=3, vote="b", log=entries(1, 40))])
    wal.append([persist(log=entries(41, 50))])
    meta, data = snapshot_of(45)
    wal.save_snapshot(meta, data)
    with pytest.raises(JournalFailed, match="in use"):
        DirectoryFiles(tmp_path / "journal")
    files.close()
    files = DirectoryFiles(tmp_path / "journal")
    wal = Wal(files, SMALL)
    assert wal.recovered.restored == Restored(HardState(3, NodeId("b")), meta, entries(46, 50))
    assert wal.snapshots.read_part(meta, 3, 5) == data[3:8]
    files.close()


def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    files = DirectoryFiles(tmp_path)
    (tmp_path / "wal-full").symlink_to("/dev/full")
    with pytest.raises(JournalFailed, match="No space left on device") as caught:
        files.write("wal-full", 0, b"x")
    assert "free space" in str(caught.value.hint)
    files.close()
