"""Data files, past the page cache where the filesystem allows it.

O_DIRECT needs aligned addresses, offsets and lengths; callers hand over padded views. A filesystem that
refuses it (FUSE, overlays, sysfs) is used through the page cache instead, which is logged, and what has
passed is dropped from the cache again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

_Move = Callable[[int, Sequence[memoryview], int], int]


class DataFileHandle:
    """An open data file that several threads read or write at given offsets.

    Raises OSError as the system does, other than EINVAL for O_DIRECT.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self.direct = True
        self._flags = flags | os.O_CLOEXEC
        self._lock = threading.Lock()
        self._descriptors: list[int] = []
        try:
            self._descriptors.append(os.open(path, self._flags | os.O_DIRECT, 0o644))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fall_back()

    def read(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill ``views`` from ``offset``; fewer bytes at the file's end."""
        return self._move(os.preadv, views, offset)

    def write(self, views: Sequence[memoryview], offset: int) -> int:
        """Write ``views`` at ``offset``."""
        return self._move(os.pwritev, views, offset)

    def _move(self, move: _Move, views: Sequence[memoryview], offset: int) -> int:
        try:
            count = move(self._descriptors[-1], views, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.direct:
                raise
            self._fall_back()
            count = move(self._descriptors[-1], views, offset)
        if not self.direct and move is os.preadv:
            os.posix_fadvise(self._descriptors[-1], offset, count, os.POSIX_FADV_DONTNEED)
        return count

    def _fall_back(self) -> None:
        with self._lock:
            if not self.direct:
                return
            # Another thread may still be using the first descriptor: both are closed together.
            self._descriptors.append(os.open(self.path, self._flags, 0o644))
            self.direct = False
        _log.warning("no direct I/O here, going through the page cache", path=str(self.path))

    def size(self) -> int:
        """Bytes, now."""
        return os.fstat(self._descriptors[-1]).st_size

    def finish(self, size_bytes: int) -> None:
        """Cut the padding of the last write off and have the file on stable storage."""
        os.ftruncate(self._descriptors[-1], size_bytes)
        os.fsync(self._descriptors[-1])

    def close(self) -> None:
        """Once, when no thread uses it."""
        for descriptor in self._descriptors:
            os.close(descriptor)
