"""The store: names, and the checkpoints they stand for.

::

    root/
    ├── names/NAME.json                 catalogue entries; renaming one in is the moment of publication
    ├── models/NAME@DIGEST/             manifest.json, small files, tensors.N.bin
    ├── partial/NAME/                   an import at work; without its lock held, rubbish
    ├── downloads/NAME@DIGEST/          data files of a remote checkpoint while they arrive
    ├── quarantine/NAME@DIGEST/         copies that failed a checksum, for a person to look at
    └── locks/                          flock files: released by the kernel however a process ends
"""

from __future__ import annotations

import difflib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from sllmd.core.errors import (
    BusyError,
    ChecksumMismatch,
    Conflict,
    MalformedCheckpoint,
    ModelNotFound,
    SourceUnavailable,
    StoreError,
)
from sllmd.core.ids import Digest, ModelName
from sllmd.store.catalogue import Catalogue, Entry, Quarantined, check_name, slug
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.directory import copy_small_files, read_manifest, tree_bytes, write_manifest
from sllmd.store.durable import remove_tree, store_errors, sync_directory
from sllmd.store.local import fingerprint
from sllmd.store.manifest import DataFile, Manifest
from sllmd.store.verify import VerifyProgress, verify_checkpoint

_log = structlog.get_logger(__name__)

Kind = Literal["stored", "in-place", "remote"]
QUARANTINED_COPIES_MAX = 4
"""Bad copies kept to be looked at, the latest ones; a failing disk must not fill itself."""
IMPORT_SECONDS = 10.0
"""Somebody else's import of the same name may take that long; a guess."""
_DIRECTORIES = ("names", "models", "partial", "downloads", "quarantine", "locks")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A catalogue entry as ``sllmd list`` shows it."""

    name: ModelName
    aliases: tuple[str, ...]
    digest: Digest
    size_bytes: int
    kind: Kind
    architecture: str
    imported_at: float
    """Unix seconds."""
    problem: str | None = None
    """Why it cannot be served, if it cannot."""


class Store:
    """The checkpoints below one directory. Any number of processes may use it at once.

    Every method raises StoreError when the filesystem refuses, and ModelNotFound for an unknown name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._catalogue = Catalogue(root)
        self._resolved: dict[str, tuple[Entry, Checkpoint]] = {}

    # Reading

    def models(self) -> list[StoredModel]:
        """All models, by name."""
        return [_stored_model(entry) for entry in self._catalogue.entries().values()]

    def model(self, name_or_alias: str) -> StoredModel:
        """What the catalogue says of one model, whether or not it can be served. Raises ModelNotFound."""
        return _stored_model(self._entry(name_or_alias))

    def resolve(self, name_or_alias: str) -> Checkpoint:
        """The checkpoint a name stands for now; a directory's stat and a dictionary when nothing changed.

        Raises ModelNotFound; ChecksumMismatch when the only copy is quarantined; MalformedCheckpoint when
        it is damaged, or, served in place, was changed since it was registered.
        """
        entry = self._entry(name_or_alias)
        if entry.quarantined:
            raise _quarantine_error(entry.quarantined)
        known = self._resolved.get(entry.name)
        if known is None or (known[0] is not entry and known[0] != entry):
            known = (entry, self._read_checkpoint(entry))
            self._resolved[entry.name] = known
        checkpoint = known[1]
        if entry.kind == "in-place":
            _check_unchanged(checkpoint)
        return checkpoint

    def _entry(self, name_or_alias: str) -> Entry:
        entry = self._catalogue.find(name_or_alias)
        if entry is not None:
            return entry
        fault = self._catalogue.fault(name_or_alias)
        if fault:
            raise MalformedCheckpoint(
                f"the catalogue entry of `{name_or_alias}` cannot be read: {fault}",
                hint="import the model again",
            )
        similar = difflib.get_close_matches(name_or_alias, self._catalogue.names_and_aliases(), n=1)
        meant = f" Did you mean `{similar[0]}`?" if similar else ""
        raise ModelNotFound(
            f"The model `{name_or_alias}` does not exist.{meant}",
            param="model",
            hint="sllmd list",
        )

    def _read_checkpoint(self, entry: Entry) -> Checkpoint:
        directory = self.root / "models" / entry.directory
        try:
            manifest = read_manifest(directory)
        except FileNotFoundError as error:
            raise MalformedCheckpoint(
                f"{directory} of model `{entry.name}` is missing", hint="import the model again"
            ) from error
        except OSError as error:
            raise StoreError(f"cannot read {directory}: {error.strerror}") from error
        if manifest.digest != entry.digest:
            raise MalformedCheckpoint(f"{directory} is not what was imported", hint="import the model again")
        data_directory = directory
        if entry.kind == "in-place":
            data_directory = Path(entry.data_directory or "")
        elif entry.kind == "remote":
            data_directory = self.root / "downloads" / entry.directory
        url = entry.remote_url if entry.kind == "remote" else None
        return Checkpoint(entry.name, manifest, directory, data_directory, url)

    def verify(self, name: str, progress: VerifyProgress) -> None:
        """Read a model's every byte against its checksums; a bad copy is quarantined.

        Raises ChecksumMismatch naming file and chunk, MalformedCheckpoint for missing or resized files,
        StoreError when the bytes are not on this machine yet.
        """
        self._resolved.pop(self._entry(name).name, None)  # the manifest itself is to be read again
        checkpoint = self.resolve(name)
        if checkpoint.remote_url:
            raise StoreError(f"`{name}` is remote: no bytes of it are here yet", hint=f"sllmd load {name}")
        with store_errors(f"read `{name}`"):
            try:
                verify_checkpoint(checkpoint, progress)
            except ChecksumMismatch as error:
                moved_to = self.quarantine(checkpoint, error.file, error.chunk_index)
                raise ChecksumMismatch(
                    file=error.file, chunk_index=error.chunk_index, quarantined_to=moved_to or None
                ) from error

    # Changing

    def prepare(self) -> None:
        """Create the store's directories. Raises StoreError."""
        with store_errors("create the store"):
            for name in _DIRECTORIES:
                (self.root / name).mkdir(parents=True, exist_ok=True)

    def alias(self, alias: str, name: str) -> None:
        """Have ``alias`` stand for a model; an alias of another model moves.

        Raises Conflict when a model itself has that name.
        """
        check_name(alias)
        with self._changing("set an alias"):
            entry = self._entry(name)
            entries = self._catalogue.entries()
            if alias in entries:
                raise Conflict(f"`{alias}` is a model, it cannot be an alias", hint="choose another name")
            for other in entries.values():
                if alias in other.aliases and other.name != entry.name:
                    kept = tuple(text for text in other.aliases if text != alias)
                    self._catalogue.put(other.model_copy(update={"aliases": kept}))
            if alias not in entry.aliases:
                self._catalogue.put(entry.model_copy(update={"aliases": (*entry.aliases, alias)}))

    def remove(self, name: str) -> int:
        """Remove a model, or only an alias; bytes freed. A model served in place keeps its data files."""
        with self._changing(f"remove `{name}`"):
            if name not in self._catalogue.entries() and self._catalogue.fault(name):
                self._catalogue.drop(name)
                return self._sweep()
            entry = self._entry(name)
            if entry.name != name:
                kept = tuple(text for text in entry.aliases if text != name)
                self._catalogue.put(entry.model_copy(update={"aliases": kept}))
                return 0
            self._catalogue.drop(name)
            if entry.quarantined and entry.quarantined.moved_to:
                remove_tree(Path(entry.quarantined.moved_to))
            return self._remove_directories(entry)

    def quarantine(self, checkpoint: Checkpoint, file: str, chunk_index: int) -> str:
        """Take a copy that failed a checksum out of service; where it is now, empty if it was not moved.

        A model that came from a URL is fetched again by its next load. Any other keeps its name, which
        answers with the same ChecksumMismatch until it is imported again. A user's own directory is left.
        """
        with self._changing(f"quarantine `{checkpoint.name}`"):
            entry = self._catalogue.entries().get(checkpoint.name)
            if entry is None or entry.directory != checkpoint.directory.name:
                return ""  # replaced or removed while it was read
            if entry.quarantined:
                return entry.quarantined.moved_to
            _log.error("bad copy quarantined", model=entry.name, file=file, chunk_index=chunk_index)
            if entry.kind == "remote":
                remove_tree(checkpoint.data_directory)
                return ""
            target = _unused(self.root / "quarantine" / entry.directory)
            os.utime(checkpoint.directory)  # its age in quarantine begins now
            moved_to = "" if entry.kind == "in-place" else str(target)
            if entry.remote_url:
                self._make_remote_again(entry, checkpoint)
            else:
                mark = Quarantined(file=file, chunk_index=chunk_index, moved_to=moved_to)
                self._catalogue.put(entry.model_copy(update={"quarantined": mark}))
            checkpoint.directory.rename(target)
            sync_directory(target.parent)
            self._forget_old_quarantine()
            return moved_to

    def _forget_old_quarantine(self) -> None:
        copies = sorted((self.root / "quarantine").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for oldest in copies[:-QUARANTINED_COPIES_MAX]:
            remove_tree(oldest)

    def _make_remote_again(self, entry: Entry, checkpoint: Checkpoint) -> None:
        directory = _unused(self.root / "models" / entry.directory)
        directory.mkdir()
        copy_small_files(checkpoint.directory, directory, checkpoint.manifest.small_files)
        write_manifest(directory, checkpoint.manifest)
        self._catalogue.put(entry.model_copy(update={"kind": "remote", "directory": directory.name}))

    def complete_remote(
        self, checkpoint: Checkpoint, chunk_digests: Mapping[str, Sequence[str]]
    ) -> Checkpoint:
        """Publish a remote checkpoint whose data files are all in ``data_directory`` now, synced.

        ``chunk_digests``: per file path, what its chunks hashed to while they passed. Raises
        SourceUnavailable when files or digests do not fit the manifest.
        """
        manifest = _with_chunk_digests(checkpoint.manifest, chunk_digests)
        staging = checkpoint.data_directory
        for file in (file for partition in manifest.partitions for file in partition.files):
            path = staging / file.path
            if not path.is_file() or path.stat().st_size != file.size_bytes:
                raise SourceUnavailable(f"{file.path} of `{checkpoint.name}` did not arrive whole")
        with self._changing(f"publish `{checkpoint.name}`"):
            entry = self._catalogue.entries().get(checkpoint.name)
            if entry is None or entry.directory != checkpoint.directory.name:
                raise StoreError(f"`{checkpoint.name}` was removed or replaced while it was loaded")
            _keep_only(staging, [file.path for partition in manifest.partitions for file in partition.files])
            copy_small_files(checkpoint.directory, staging, manifest.small_files)
            write_manifest(staging, manifest)
            self._publish_directory(entry.model_copy(update={"kind": "stored"}), staging)
        return self.resolve(checkpoint.name)

    @contextmanager
    def attended(self) -> Iterator[bool]:
        """Count as a daemon that serves this store, inside; gives whether others do already."""
        with store_errors("open the store"):
            descriptor = os.open(
                self.root / "locks" / "daemons", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
        try:
            shared = False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                shared = True
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield shared
        finally:
            os.close(descriptor)

    # For importing

    @contextmanager
    def importing(self, name: ModelName) -> Iterator[Path]:
        """An empty directory to build model ``name`` in, gone afterwards unless published.

        Raises BusyError when another process imports the same name, Conflict when an alias has it. What
        killed imports left is removed first.
        """
        self.prepare()
        entry = self._catalogue.find(name)
        if entry is not None and entry.name != name:
            raise Conflict(f"`{name}` is an alias of `{entry.name}`", hint="import under another name")
        with store_errors(f"import `{name}`"), _import_lock(self.root, slug(name)) as acquired:
            if not acquired:
                raise BusyError(
                    f"`{name}` is being imported by another process",
                    retry_after_seconds=IMPORT_SECONDS,
                    hint="wait for it to finish",
                )
            staging = self.root / "partial" / slug(name)
            try:
                remove_tree(staging)
                self._sweep_partial(name)
                staging.mkdir()
                yield staging
            finally:
                remove_tree(staging)

    def publish(
        self,
        staging: Path,
        manifest: Manifest,
        *,
        name: ModelName,
        kind: Kind,
        data_directory: Path | None = None,
        remote_url: str | None = None,
    ) -> Checkpoint:
        """Make a complete, synced directory the model ``name``, in place of what had that name before."""
        with self._changing(f"publish `{name}`"):
            before = self._catalogue.entries().get(name)
            entry = Entry(
                name=name,
                aliases=before.aliases if before else (),
                kind=kind,
                digest=manifest.digest,
                architecture=manifest.architecture,
                size_bytes=manifest.size_bytes,
                imported_at=time.time(),
                directory="",
                data_directory=str(data_directory) if data_directory else None,
                remote_url=remote_url,
            )
            self._publish_directory(entry, staging)
            self._sweep()
        return self.resolve(name)

    def confirm(self, name: ModelName, *, remote_url: str | None = None) -> Checkpoint:
        """Model ``name`` was imported again and is the same: its time and its address are the new ones."""
        with self._changing(f"confirm `{name}`"):
            entry = self._entry(name)
            url = remote_url or entry.remote_url
            self._catalogue.put(entry.model_copy(update={"imported_at": time.time(), "remote_url": url}))
        return self.resolve(name)

    def _publish_directory(self, entry: Entry, staging: Path) -> None:
        """Rename ``staging`` into place, switch the entry over, remove what it stood for. Lock held."""
        before = self._catalogue.entries().get(entry.name)
        taken = before.directory if before else ""  # quarantined: free on disk, and about to be removed
        target = _unused(self.root / "models" / f"{slug(entry.name)}@{entry.digest[:16]}", taken)
        staging.rename(target)
        sync_directory(target.parent)
        self._catalogue.put(entry.model_copy(update={"directory": target.name}))
        if before is not None:
            self._remove_directories(before)

    def _remove_directories(self, entry: Entry) -> int:
        freed = 0
        for parent in ("models", "downloads"):
            directory = self.root / parent / entry.directory
            freed += tree_bytes(directory) if directory.exists() else 0
            remove_tree(directory)
        return freed

    def _sweep(self) -> int:
        """Remove directories that no entry stands for: a process was killed between two steps. Lock held."""
        entries = self._catalogue.entries()
        if self._catalogue.has_faults:
            return 0  # an unreadable entry may stand for one of them
        for unfinished in (self.root / "names").glob(".*.tmp"):
            unfinished.unlink()
        used = {entry.directory for entry in entries.values()}
        freed = 0
        for parent in ("models", "downloads"):
            for directory in (self.root / parent).iterdir():
                if directory.name not in used:
                    freed += tree_bytes(directory)
                    remove_tree(directory)
        return freed

    def _sweep_partial(self, name: ModelName) -> None:
        for leftover in (self.root / "partial").iterdir():
            if leftover.name == slug(name):
                continue
            with _import_lock(self.root, leftover.name) as acquired:
                if acquired:
                    remove_tree(leftover)

    @contextmanager
    def _changing(self, action: str) -> Iterator[None]:
        self.prepare()
        with self._catalogue.locked(), store_errors(action):
            yield


@contextmanager
def _import_lock(root: Path, file_name: str) -> Iterator[bool]:
    """Hold the lock of one name's imports, if nobody does; the kernel drops it with the process."""
    path = root / "locks" / f"{file_name}.import"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _keep_only(directory: Path, files: list[str]) -> None:
    """Remove what a loader kept beside the data files for itself."""
    kept = {directory / file for file in files}
    for path in list(directory.rglob("*")):
        if path not in kept and not path.is_dir():
            path.unlink()


def _unused(path: Path, taken: str = "") -> Path:
    """``path``, or with a number behind it while that exists or is called ``taken``."""
    candidate, number = path, 1
    while candidate.exists() or candidate.name == taken:
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def _stored_model(entry: Entry) -> StoredModel:
    problem = str(_quarantine_error(entry.quarantined)) if entry.quarantined else None
    return StoredModel(
        name=entry.name,
        aliases=entry.aliases,
        digest=entry.digest,
        size_bytes=entry.size_bytes,
        kind=entry.kind,
        architecture=entry.architecture,
        imported_at=entry.imported_at,
        problem=problem,
    )


def _quarantine_error(mark: Quarantined) -> ChecksumMismatch:
    return ChecksumMismatch(
        file=mark.file, chunk_index=mark.chunk_index, quarantined_to=mark.moved_to or None
    )


def _check_unchanged(checkpoint: Checkpoint) -> None:
    files = [file.path for partition in checkpoint.manifest.partitions for file in partition.files]
    try:
        same = fingerprint(checkpoint.data_directory, files) == checkpoint.manifest.source.fingerprint
    except OSError as error:
        raise MalformedCheckpoint(
            f"{error.filename} of `{checkpoint.name}` cannot be read any more: {error.strerror}",
            hint="put it back, or import the model from where it is now",
        ) from error
    if not same:
        raise MalformedCheckpoint(
            f"{checkpoint.data_directory} changed since `{checkpoint.name}` was registered",
            hint="import it again",
        )


def _with_chunk_digests(manifest: Manifest, chunk_digests: Mapping[str, Sequence[str]]) -> Manifest:
    def completed(file: DataFile) -> DataFile:
        found = tuple(chunk_digests.get(file.path, ()))
        if len(found) != -(-file.size_bytes // manifest.chunk_bytes):
            raise SourceUnavailable(f"{file.path}: {len(found)} chunk checksums do not cover the file")
        for index, (digest, expected) in enumerate(zip(found, file.chunk_digests, strict=False)):
            if digest != expected:
                raise ChecksumMismatch(file=file.path, chunk_index=index)
        return file.model_copy(update={"chunk_digests": found})

    partitions = tuple(
        partition.model_copy(update={"files": tuple(completed(file) for file in partition.files)})
        for partition in manifest.partitions
    )
    return manifest.model_copy(update={"partitions": partitions})
