"""Writing that lasts: whole, checked, synced; and what the system says when it cannot.

``os.write`` may write less than it was given and say so only in its return value. Whoever ignores that
publishes files that are short or empty, so every byte of the store goes through ``write_all``.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sllmd.core.errors import StoreError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def store_errors(action: str) -> Iterator[None]:
    """Turn an OSError within into a StoreError that says what could not be done, and why."""
    try:
        yield
    except OSError as error:
        raise store_error(action, error) from error


def store_error(action: str, error: OSError) -> StoreError:
    """The StoreError that tells ``error``, which happened while doing ``action``."""
    where = f": {error.filename}" if error.filename else ""
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = None
    if error.errno in _FULL:
        hint = "free some space (`sllmd rm MODEL`), or put the store on a larger disk"
    elif error.errno in _DENIED:
        hint = "run as the user that owns the store, or change its owner"
    return StoreError(f"cannot {action}: {reason}{where}", hint=hint)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte of ``data`` at the descriptor's position. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.write(descriptor, view)
        if written <= 0:
            raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
        view = view[written:]


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Create ``path`` with ``data`` on stable storage; its directory still needs ``sync_directory``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put ``data`` at ``path`` in one step: readers see the old file or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        write_file(temporary, data, mode=mode)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Have a file that somebody else wrote on stable storage."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Have the directory's entries on stable storage."""
    sync_file(path)


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it; nothing happens when it is not there."""
    if path.exists():
        shutil.rmtree(path)
