"""The few things that the journal asks of a directory, and a directory on a real disk.

``Files`` is the seam at which the simulator puts a disk that loses, tears, flips, fills and fails.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

from sllmd.core.errors import JournalFailed


class Files(Protocol):
    """Named files. Nothing is durable before ``sync``; a name, not before ``sync_names``."""

    def names(self) -> list[str]:
        """Every file, sorted."""
        ...

    def size_bytes(self, name: str) -> int:
        """How long the file is."""
        ...

    def read(self, name: str, offset: int = 0, bytes_max: int = -1) -> bytes:
        """Up to ``bytes_max`` bytes at ``offset``; to the end if negative."""
        ...

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write all of it; the file is made if there is none."""
        ...

    def truncate(self, name: str, size_bytes: int) -> None:
        """Cut the file."""
        ...

    def sync(self, name: str) -> None:
        """Make the file's bytes durable."""
        ...

    def sync_names(self) -> None:
        """Make made, renamed and removed names durable."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Atomically, over whatever has the new name."""
        ...

    def remove(self, name: str) -> None:
        """Remove the file."""
        ...


class DirectoryFiles:
    """A directory, held by a lock so that no second process writes into it. Errors are JournalFailed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, int] = {}
        _make(directory)
        self._handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            raise JournalFailed(
                f"{directory} is in use by another process", hint="one daemon per data directory"
            ) from error

    def names(self) -> list[str]:
        """Every file, sorted."""
        return sorted(path.name for path in self._directory.iterdir() if path.is_file())

    def size_bytes(self, name: str) -> int:
        """How long the file is."""
        return (self._directory / name).stat().st_size

    def read(self, name: str, offset: int = 0, bytes_max: int = -1) -> bytes:
        """Raises JournalFailed where the disk cannot."""
        try:
            with (self._directory / name).open("rb") as file:
                file.seek(offset)
                return file.read(bytes_max)
        except OSError as error:
            raise _failed("read", name, error) from error

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Raises JournalFailed; how much was written is then unknown."""
        try:
            handle, view = self._handle_of(name), memoryview(data)
            while view:
                count = os.pwrite(handle, view, offset)
                offset, view = offset + count, view[count:]
        except OSError as error:
            raise _failed("write", name, error) from error

    def truncate(self, name: str, size_bytes: int) -> None:
        """Raises JournalFailed."""
        try:
            os.ftruncate(self._handle_of(name), size_bytes)
        except OSError as error:
            raise _failed("cut", name, error) from error

    def sync(self, name: str) -> None:
        """Raises JournalFailed: the kernel may drop the pages, so a second try would lie."""
        try:
            os.fdatasync(self._handle_of(name))
        except OSError as error:
            raise _failed("sync", name, error) from error

    def sync_names(self) -> None:
        """Raises JournalFailed."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise _failed("sync", str(self._directory), error) from error

    def rename(self, old: str, new: str) -> None:
        """Raises JournalFailed."""
        self._release(old)
        self._release(new)
        try:
            (self._directory / old).replace(self._directory / new)
        except OSError as error:
            raise _failed("rename", old, error) from error

    def remove(self, name: str) -> None:
        """Raises JournalFailed."""
        self._release(name)
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise _failed("remove", name, error) from error

    def close(self) -> None:
        """Close every file and let go of the lock."""
        for name in list(self._open):
            self._release(name)
        os.close(self._handle)

    def _handle_of(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = os.open(self._directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._open[name]

    def _release(self, name: str) -> None:
        handle = self._open.pop(name, None)
        if handle is not None:
            os.close(handle)


def _make(directory: Path) -> None:
    """Make the directory and its name durable: what a crash unmakes is no journal."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise _failed("make", str(directory), error) from error


def _failed(verb: str, name: str, error: OSError) -> JournalFailed:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return JournalFailed(
        f"the journal cannot {verb} {name}: {error.strerror}",
        hint="free space on this disk and start again" if full else "check this disk before you start again",
    )
