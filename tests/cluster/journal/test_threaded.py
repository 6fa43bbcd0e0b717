"""The thread: order, groups, and one answer for everybody when the disk fails."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sllmd.cluster.journal import Journal, JournalSettings, Wal
from sllmd.cluster.journal.snapshots import describe
from sllmd.cluster.raft.entries import Entry, EntryKind, membership
from sllmd.cluster.raft.events import Persist
from sllmd.core.errors import JournalFailed
from sllmd.core.ids import NodeId
from tests.simulation.disk import SimDisk


class GatedDisk(SimDisk):
    """Its first sync waits until the gate opens; it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.syncs = 0

    def sync(self, name: str) -> None:
        self.gate.wait(10)
        self.syncs += 1
        super().sync(name)


def persist(index: int) -> Persist:
    return Persist(index, None, None, (Entry(index, 1, EntryKind.COMMAND, b"x"),), ())


async def test_what_waits_together_is_synced_together_and_in_order() -> None:
    disk = GatedDisk()
    journal = Journal(Wal(disk, JournalSettings()))
    done: list[int] = []
    answers = [journal.persist(persist(index)) for index in range(1, 201)]
    for index, answer in enumerate(answers, 1):
        answer.add_done_callback(lambda _, index=index: done.append(index))
    assert not any(answer.done() for answer in answers)
    disk.gate.set()
    await asyncio.gather(*answers)
    assert done == list(range(1, 201))
    assert disk.syncs <= 4, "the segment's beginning, the first write, and the rest in one group or two"
    await journal.close()
    assert len(Wal(disk, JournalSettings()).recovered.restored.entries) == 200


async def test_a_failure_answers_everybody_and_everything_later() -> None:
    disk = SimDisk()
    journal = Journal(Wal(disk, JournalSettings()))
    await journal.persist(persist(1))
    disk.failing = "Input/output error"
    results = await asyncio.gather(*(journal.persist(persist(2)) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in results] == [JournalFailed] * 3
    disk.failing = ""
    with pytest.raises(JournalFailed):
        await journal.persist(persist(2))
    await journal.close()


async def test_snapshots_take_their_turn_among_writes() -> None:
    disk = SimDisk()
    journal = Journal(Wal(disk, JournalSettings()))
    meta = describe(1, 1, membership({NodeId("a")}, set()), b"state")
    first, saved, last = (
        journal.persist(persist(1)),
        journal.save_snapshot(meta, b"state"),
        journal.persist(persist(2)),
    )
    await asyncio.gather(first, saved, last)
    assert await journal.read_snapshot(meta) == b"state"
    assert await journal.read_snapshot_part(meta, 1, 2) == b"ta"
    await journal.close()
    restored = Wal(disk, JournalSettings()).recovered.restored
    assert (restored.snapshot, [entry.index for entry in restored.entries]) == (meta, [2])


async def test_closing_finishes_what_was_begun() -> None:
    disk = SimDisk()
    journal = Journal(Wal(disk, JournalSettings()))
    answers = [journal.persist(persist(index)) for index in range(1, 50)]
    await journal.close()
    await asyncio.gather(*answers)
    assert len(Wal(disk, JournalSettings()).recovered.restored.entries) == 49
