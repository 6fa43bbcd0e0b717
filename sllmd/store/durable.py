"""Writing that lasts: whole, checked, synced; and what the system says when it cannot.

``os.write`` may write less than it was given and say so only in its return value. Whoever ignores that
publishes files that are short or empty, so every byte of the store goes through ``write_all``.

Whatever is made here has the mode that is asked for, whatever the umask, and what root makes belongs to the
owner of the directory that it is made in: root's import must not lock out the daemon that owns the store.
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


def make_directory(path: Path, *, exist_ok: bool = False) -> None:
    """Create ``path`` and the directories above it that are missing. Raises OSError, FileExistsError too."""
    if not path.parent.exists():
        make_directory(path.parent, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        if exist_ok and path.is_dir():
            return
        raise
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o755)
        give_to_owner(descriptor, path.parent)
    finally:
        os.close(descriptor)


def create_file(path: Path, *, mode: int = 0o644) -> int:
    """The descriptor of a new file to write to. Raises OSError when it is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        give_to_owner(descriptor, path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Give what is open to the owner of ``directory``; only root can, and others need not. Raises OSError."""
    if os.geteuid() != 0:
        return
    owner, found = directory.stat(), os.fstat(descriptor)
    if (found.st_uid, found.st_gid) != (owner.st_uid, owner.st_gid):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


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
    descriptor = create_file(path, mode=mode)
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
