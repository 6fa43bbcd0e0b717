"""A node's journal as the shell opens and closes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sllmd.cluster.catalogue import EMPTY, Catalogue, restore
from sllmd.cluster.journal import DirectoryFiles, Files, Journal, JournalSettings, Wal
from sllmd.cluster.raft.entries import (
    NOBODY,
    EntryKind,
    Membership,
    Restored,
    decode_membership,
    founding,
)
from sllmd.cluster.raft.events import Persist


class OpenFiles(Files, Protocol):
    """Files that somebody holds."""

    def close(self) -> None:
        """Let go of them."""


OpenDirectory = Callable[[Path], OpenFiles]


@dataclass(frozen=True, slots=True)
class Disk:
    """An open journal and what it held."""

    files: OpenFiles
    journal: Journal
    settings: JournalSettings
    restored: Restored
    catalogue: Catalogue
    """As of the snapshot."""

    async def close(self) -> None:
        """Finish what was begun; afterwards somebody else may open the directory."""
        await self.journal.close()
        self.files.close()


async def open_disk(
    directory: Path,
    settings: JournalSettings,
    founders: Membership | None,
    open_files: OpenDirectory = DirectoryFiles,
) -> Disk:
    """Open this node's journal; an empty one begins with the ``founders``, if there are any.

    Raises JournalCorrupt and JournalFailed: a node must not vote on half of what it promised.
    """
    files = await asyncio.to_thread(open_files, directory)
    try:
        wal = await asyncio.to_thread(Wal, files, settings)
        restored, catalogue = wal.recovered.restored, EMPTY
        if restored.snapshot is not None:
            catalogue = restore(await asyncio.to_thread(wal.snapshots.read, restored.snapshot))
    except BaseException:
        files.close()
        raise
    disk = Disk(files, Journal(wal), settings, restored, catalogue)
    if founders is None or not is_blank(restored):
        return disk
    first = founding(founders)
    try:
        await disk.journal.persist(Persist(0, first.hard_state, None, first.entries, ()))
    except BaseException:
        await disk.close()
        raise
    return Disk(files, disk.journal, settings, first, EMPTY)


def is_blank(restored: Restored) -> bool:
    """Whether this node has never been part of a log."""
    return restored.snapshot is None and not restored.entries


def last_membership(restored: Restored) -> Membership:
    """The newest membership that a journal holds, committed or not."""
    for entry in reversed(restored.entries):
        if entry.kind is EntryKind.MEMBERSHIP:
            return decode_membership(entry.data)
    return restored.snapshot.membership if restored.snapshot else NOBODY
