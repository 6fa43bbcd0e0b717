"""SSD -> DRAM: a checkpoint's data files read straight into slabs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import xxhash

from sllmd.core.errors import ChecksumMismatch, MalformedCheckpoint, SllmdError, StoreError
from sllmd.loader.files import DataFileHandle
from sllmd.loader.plan import Chunk
from sllmd.loader.status import Stage
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.manifest import DataFile, align_down, align_up

_log = structlog.get_logger(__name__)

DISK_PREFIX = "disk "
"""Begins the names of disks, and of nothing else that has a queue."""
Advance = Callable[[int], None]
"""Reports bytes that arrived, for progress and the stall clock."""


class DiskSource:
    """A checkpoint on a local filesystem. Threads call ``read``; each chunk once."""

    stage: Stage = "ssd→dram"
    stored = True
    published = None

    def __init__(
        self, checkpoint: Checkpoint, *, verify: bool, quarantine: Callable[[Checkpoint, str, int], str]
    ) -> None:
        self._checkpoint = checkpoint
        self._verify = verify
        self._quarantine = quarantine
        self._lock = threading.Lock()
        self._files: dict[str, DataFileHandle] = {}

    def open(self) -> None:
        """Files are opened as their first chunk comes up."""

    @property
    def direct_io(self) -> bool:
        """False once a file had to be read through the page cache."""
        return all(handle.direct for handle in list(self._files.values()))

    def read(self, chunk: Chunk, views: Sequence[memoryview], advance: Advance) -> None:
        """Fill ``views``, padded to the alignment, with the chunk.

        Raises StoreError (gone, denied, I/O error), MalformedCheckpoint (not the size it should have) or
        ChecksumMismatch (after the copy was quarantined).
        """
        try:
            handle = self._open(chunk.file)
            fill(handle, chunk, views)
        except OSError as error:
            raise self._explain(chunk.file, error) from None
        advance(chunk.size_bytes)
        if self._verify and chunk.digest is not None and digest_of(views, chunk.size_bytes) != chunk.digest:
            raise self._mismatch(chunk)

    def _open(self, file: DataFile) -> DataFileHandle:
        with self._lock:
            handle = self._files.get(file.path)
            if handle is None:
                handle = DataFileHandle(self._checkpoint.data_directory / file.path, os.O_RDONLY)
                self._files[file.path] = handle
                check_size(handle, file)
            return handle

    def _explain(self, file: DataFile, error: OSError) -> SllmdError:
        path = self._checkpoint.data_directory / file.path
        if isinstance(error, FileNotFoundError):
            return StoreError(f"{path} of {self._checkpoint.name} is gone", hint="import the model again")
        return StoreError(f"cannot read {path} of {self._checkpoint.name}: {error.strerror}")

    def _mismatch(self, chunk: Chunk) -> ChecksumMismatch:
        moved_to = None
        try:
            moved_to = self._quarantine(self._checkpoint, chunk.file.path, chunk.index)
        except (SllmdError, OSError) as error:
            # The load fails either way; that the bad copy is still in place must not be a secret.
            _log.warning("bad copy not quarantined", model=self._checkpoint.name, reason=str(error))
        return ChecksumMismatch(file=chunk.file.path, chunk_index=chunk.index, quarantined_to=moved_to)

    def interrupt(self) -> None:
        """A read in flight cannot be interrupted: it returns when the disk answers."""

    def publish(self) -> None:
        """The bytes are where they belong."""

    def close(self) -> None:
        """Once, when no thread reads any more."""
        for handle in self._files.values():
            handle.close()


def fill(handle: DataFileHandle, chunk: Chunk, views: Sequence[memoryview]) -> None:
    """Read ``chunk`` into ``views`` and clear their padding.

    Raises MalformedCheckpoint where the file ends too early, OSError as the system does.
    """
    done = 0
    while True:
        count = handle.read(skip(views, done), chunk.offset_bytes + done)
        if done + count >= chunk.size_bytes:
            break
        # A direct read goes on at an aligned offset; one that gains nothing has met the end of the file.
        resumed = align_down(done + count)
        if resumed == done:
            check_size(handle, chunk.file)
            raise MalformedCheckpoint(f"{handle.path} ends inside chunk {chunk.index}")
        done = resumed
    clear_padding(views, chunk.size_bytes)


def check_size(handle: DataFileHandle, file: DataFile) -> None:
    """Raises MalformedCheckpoint when the file is not as long as the manifest says."""
    size = handle.size()
    if size != file.size_bytes:
        what = "is truncated" if size < file.size_bytes else "has grown"
        raise MalformedCheckpoint(
            f"{handle.path} {what}: {size} bytes instead of {file.size_bytes}", hint="import the model again"
        )


def skip(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """``views`` without their first ``count`` bytes."""
    rest = []
    for view in views:
        if count < len(view):
            rest.append(view[count:] if count else view)
        count = max(0, count - len(view))
    return rest


def clear_padding(views: Sequence[memoryview], size_bytes: int) -> None:
    """Zero what lies behind the chunk's bytes up to the alignment: it may be another model's."""
    padding = align_up(size_bytes) - size_bytes
    if padding:
        views[-1][-padding:] = bytes(padding)


def digest_of(views: Sequence[memoryview], size_bytes: int) -> str:
    """xxh3-128, in hex, of the first ``size_bytes`` of ``views``."""
    state = xxhash.xxh3_128()
    for view in views:
        state.update(view[:size_bytes])
        size_bytes = max(0, size_bytes - len(view))
    return state.hexdigest()


def disk_of(directory: Path) -> str:
    """Names the disk that ``directory`` lies on: its reads share one queue.

    Raises StoreError when it is not there.
    """
    try:
        device = directory.stat().st_dev
    except OSError as error:
        raise StoreError(f"cannot read {directory}: {error.strerror}") from None
    return f"{DISK_PREFIX}{os.major(device)}:{os.minor(device)}"
