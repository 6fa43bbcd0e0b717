"""The directories of a store: which there are, which are taken, which are rubbish.

An entry of the catalogue names its directory; one that no entry names is rubbish, left by a process that was
killed between two steps. Whoever changes anything here holds the catalogue's lock.
"""

from __future__ import annotations

import os
from pathlib import Path

from sllmd.core.ids import ModelName
from sllmd.store.catalogue import Catalogue, Entry, slug
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.directory import copy_small_files, tree_bytes, write_manifest
from sllmd.store.durable import make_directory, remove_tree, sync_directory
from sllmd.store.locks import held_alone

QUARANTINED_COPIES_MAX = 4
"""Bad copies kept to be looked at, the latest ones; a failing disk must not fill itself."""
_DIRECTORIES = ("names", "models", "partial", "downloads", "quarantine", "locks")
_OF_ENTRIES = ("models", "downloads")


class Shelves:
    """Every method raises OSError."""

    def __init__(self, root: Path, catalogue: Catalogue) -> None:
        self._root = root
        self._catalogue = catalogue

    def prepare(self) -> None:
        """Create what is missing."""
        for name in _DIRECTORIES:
            make_directory(self._root / name, exist_ok=True)

    def put(self, entry: Entry, staging: Path) -> None:
        """Rename ``staging`` into place, switch the entry over, remove what it stood for."""
        before = self._catalogue.entries().get(entry.name)
        taken = before.directory if before else ""  # quarantined: free on disk, and about to be removed
        target = _unused(self._root / "models" / f"{slug(entry.name)}@{entry.digest[:16]}", taken)
        staging.rename(target)
        sync_directory(target.parent)
        self._catalogue.put(entry.model_copy(update={"directory": target.name}))
        if before is not None:
            self.remove(before)

    def put_without_data(self, entry: Entry, checkpoint: Checkpoint) -> None:
        """The entry is remote again: of ``checkpoint`` it has manifest and small files."""
        directory = _unused(self._root / "models" / entry.directory)
        make_directory(directory)
        copy_small_files(checkpoint.directory, directory, checkpoint.manifest.small_files)
        write_manifest(directory, checkpoint.manifest)
        self._catalogue.put(entry.model_copy(update={"kind": "remote", "directory": directory.name}))

    def remove(self, entry: Entry) -> int:
        """Its directories go; bytes freed."""
        return sum(_remove(self._root / parent / entry.directory) for parent in _OF_ENTRIES)

    def sweep(self) -> int:
        """Remove directories that no entry stands for; bytes freed."""
        entries = self._catalogue.entries()
        if self._catalogue.faults:
            return 0  # an unreadable entry may stand for one of them
        for unfinished in (self._root / "names").glob(".*.tmp"):
            unfinished.unlink()
        used = {entry.directory for entry in entries.values()}
        found = [directory for parent in _OF_ENTRIES for directory in (self._root / parent).iterdir()]
        return sum(_remove(directory) for directory in found if directory.name not in used)

    def quarantine_place(self, entry: Entry) -> Path:
        """Where a bad copy may be moved to."""
        return _unused(self._root / "quarantine" / entry.directory)

    def quarantine(self, directory: Path, place: Path) -> None:
        """Move a bad copy there; the oldest ones go."""
        os.utime(directory)  # its age in quarantine begins now
        directory.rename(place)
        sync_directory(place.parent)
        copies = sorted(place.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for oldest in copies[:-QUARANTINED_COPIES_MAX]:
            remove_tree(oldest)

    def import_lock(self, directory_name: str) -> Path:
        """Held by whoever imports into that directory of ``partial``."""
        return self._root / "locks" / f"{directory_name}.import"

    def clear_staging(self, name: ModelName) -> Path:
        """Where an import of ``name`` begins, empty. Its lock is held; what killed imports left goes, too."""
        staging = self._root / "partial" / slug(name)
        remove_tree(staging)
        for leftover in staging.parent.iterdir():
            with held_alone(self.import_lock(leftover.name)) as alone:
                if alone:
                    remove_tree(leftover)
        make_directory(staging)
        return staging


def _remove(directory: Path) -> int:
    freed = tree_bytes(directory) if directory.exists() else 0
    remove_tree(directory)
    return freed


def _unused(path: Path, taken: str = "") -> Path:
    """``path``, or with a number behind it while that exists or is called ``taken``."""
    candidate, number = path, 1
    while candidate.exists() or candidate.name == taken:
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate
