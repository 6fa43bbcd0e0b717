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
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from sllmd.core.errors import (
    BusyError,
    ChecksumMismatch,
    Conflict,
    MalformedCheckpoint,
    ModelNotFound,
    StoreError,
)
from sllmd.core.ids import Digest, ModelName
from sllmd.store.arriving import arrived, complete
from sllmd.store.catalogue import Catalogue, Entry, Quarantined, check_name, slug
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.directory import read_manifest
from sllmd.store.durable import remove_tree, store_errors
from sllmd.store.local import fingerprint
from sllmd.store.locks import held_alone, open_lock, try_alone
from sllmd.store.manifest import Manifest
from sllmd.store.shelves import Shelves
from sllmd.store.verify import VerifyProgress, verify_checkpoint

_log = structlog.get_logger(__name__)

Kind = Literal["stored", "in-place", "remote"]
IMPORT_SECONDS = 10.0
"""Somebody else's import of the same name may take that long; a guess."""


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
    directory: str = ""
    """Its own in ``models/``: another one whenever its bytes were put there anew."""
    problem: str | None = None
    """Why it cannot be served, if it cannot."""
    remote_url: str | None = field(default=None, repr=False)
    """Where its bytes came or come from; never shown: it may be signed."""


class Store:
    """The checkpoints below one directory. Any number of processes may use it at once.

    Every method raises StoreError when the filesystem refuses, and ModelNotFound for an unknown name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._catalogue = Catalogue(root)
        self._shelves = Shelves(root, self._catalogue)
        self._resolved: dict[str, tuple[Entry, Checkpoint]] = {}

    # Reading

    def models(self) -> list[StoredModel]:
        """All models, by name; also those whose entry cannot be read, of which nothing but that is known."""
        entries = self._catalogue.entries()
        unreadable = [_unreadable_model(name, why) for name, why in self._catalogue.faults.items()]
        return sorted([*map(_stored_model, entries.values()), *unreadable], key=lambda model: model.name)

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
            raise _unreadable_error(name_or_alias, fault)
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
            self._shelves.prepare()

    def alias(self, alias: str, name: str, *, replace: bool = False) -> None:
        """Have ``alias`` stand for a model; an alias of another model moves with ``replace``.

        Raises Conflict when a model itself has that name, and when another has the alias.
        """
        check_name(alias)
        with self._changing("set an alias"):
            entry = self._entry(name)
            entries = self._catalogue.entries()
            if alias in entries:
                raise Conflict(f"`{alias}` is a model, it cannot be an alias", hint="choose another name")
            for other in entries.values():
                if alias in other.aliases and other.name != entry.name:
                    if not replace:
                        raise Conflict(
                            f"`{alias}` is another name of `{other.name}` already",
                            hint="`--replace` takes it from there",
                        )
                    kept = tuple(text for text in other.aliases if text != alias)
                    self._catalogue.put(other.model_copy(update={"aliases": kept}))
            if alias not in entry.aliases:
                self._catalogue.put(entry.model_copy(update={"aliases": (*entry.aliases, alias)}))

    def remove(self, name: str) -> int:
        """Remove a model, or only an alias; bytes freed. A model served in place keeps its data files."""
        with self._changing(f"remove `{name}`"):
            if name not in self._catalogue.entries() and self._catalogue.fault(name):
                self._catalogue.drop(name)
                return self._shelves.sweep()
            entry = self._entry(name)
            if entry.name != name:
                kept = tuple(text for text in entry.aliases if text != name)
                self._catalogue.put(entry.model_copy(update={"aliases": kept}))
                return 0
            self._catalogue.drop(name)
            if entry.quarantined and entry.quarantined.moved_to:
                remove_tree(Path(entry.quarantined.moved_to))
            return self._shelves.remove(entry)

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
            place = self._shelves.quarantine_place(entry)
            moved_to = "" if entry.kind == "in-place" else str(place)
            if entry.remote_url:
                self._shelves.put_without_data(entry, checkpoint)
            else:
                mark = Quarantined(file=file, chunk_index=chunk_index, moved_to=moved_to)
                self._catalogue.put(entry.model_copy(update={"quarantined": mark}))
            self._shelves.quarantine(checkpoint.directory, place)
            return moved_to

    def complete_remote(
        self, checkpoint: Checkpoint, chunk_digests: Mapping[str, Sequence[str]]
    ) -> Checkpoint:
        """Publish a remote checkpoint whose data files are all in ``data_directory`` now, synced.

        ``chunk_digests``: per file path, what its chunks hashed to while they passed. Raises
        SourceUnavailable when files or digests do not fit the manifest.
        """
        manifest, staging = arrived(checkpoint, chunk_digests), checkpoint.data_directory
        with self._changing(f"publish `{checkpoint.name}`"):
            entry = self._catalogue.entries().get(checkpoint.name)
            if entry is None or entry.directory != checkpoint.directory.name:
                raise StoreError(f"`{checkpoint.name}` was removed or replaced while it was loaded")
            complete(staging, manifest, checkpoint.directory)
            self._shelves.put(entry.model_copy(update={"kind": "stored"}), staging)
        return self.resolve(checkpoint.name)

    @contextmanager
    def attended(self) -> Iterator[bool]:
        """Count as a daemon that serves this store, inside; gives whether others do already."""
        with ExitStack() as opened:
            with store_errors("open the store"):
                descriptor = opened.enter_context(open_lock(self.root / "locks" / "daemons"))
            shared = not try_alone(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield shared

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
        lock = self._shelves.import_lock(slug(name))
        with store_errors(f"import `{name}`"), held_alone(lock) as alone:
            if not alone:
                raise BusyError(
                    f"`{name}` is being imported by another process",
                    retry_after_seconds=IMPORT_SECONDS,
                    hint="wait for it to finish",
                )
            staging = self._shelves.clear_staging(name)
            try:
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
            self._shelves.put(entry, staging)
            self._shelves.sweep()
        return self.resolve(name)

    def confirm(self, name: ModelName, *, remote_url: str | None = None) -> Checkpoint:
        """Model ``name`` was imported again and is the same: its time and its address are the new ones."""
        with self._changing(f"confirm `{name}`"):
            entry = self._entry(name)
            url = remote_url or entry.remote_url
            self._catalogue.put(entry.model_copy(update={"imported_at": time.time(), "remote_url": url}))
        return self.resolve(name)

    @contextmanager
    def _changing(self, action: str) -> Iterator[None]:
        self.prepare()
        with self._catalogue.locked(), store_errors(action):
            yield


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
        directory=entry.directory,
        problem=problem,
        remote_url=entry.remote_url,
    )


def _unreadable_model(name: str, fault: str) -> StoredModel:
    return StoredModel(
        name=ModelName(name),
        aliases=(),
        digest=Digest(""),
        size_bytes=0,
        kind="stored",
        architecture="",
        imported_at=0.0,
        problem=str(_unreadable_error(name, fault)),
    )


def _unreadable_error(name: str, fault: str) -> MalformedCheckpoint:
    return MalformedCheckpoint(
        f"the catalogue entry of `{name}` cannot be read: {fault}", hint="import the model again"
    )


def _quarantine_error(mark: Quarantined) -> ChecksumMismatch:
    return ChecksumMismatch(
        file=mark.file, chunk_index=mark.chunk_index, quarantined_to=mark.moved_to or None
    )


def _check_unchanged(checkpoint: Checkpoint) -> None:
    files = [file.path for file in checkpoint.manifest.data_files]
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
