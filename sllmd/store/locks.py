"""Locks between processes: files that are held open. The kernel lets go of them however a process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sllmd.store.durable import give_to_owner


@contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """The lock's descriptor, for ``flock``; whatever is held by it is let go at the end. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        give_to_owner(descriptor, path.parent)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def held_alone(path: Path) -> Iterator[bool]:
    """Hold it inside, if nobody does; gives whether. Raises OSError."""
    with open_lock(path) as descriptor:
        yield try_alone(descriptor)


def try_alone(descriptor: int) -> bool:
    """Hold the lock exclusively unless somebody holds it; whether it is held now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
