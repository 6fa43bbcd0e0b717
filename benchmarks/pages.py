"""Huge pages for shared memory, while a bench runs: what sllmd's README tells an owner to switch on.

Linux gives shared memory (the DRAM tier's slabs) small pages unless told otherwise, even to a program that
asks for huge ones. A read through O_DIRECT into small pages is cut into requests of at most as many pages as
the disk takes segments, often 1 MB, and a virtual disk that is limited in requests per second then gives a
third of its bandwidth. No peer here uses shared memory, so nobody else gains or loses by the switch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.environments import log

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@contextmanager
def huge_pages(choice: str = "advise") -> Iterator[None]:
    """``advise`` or ``never`` for shared memory, and back to what it was afterwards.

    A kernel without the switch is left alone, said aloud.
    """
    if not _SWITCH.exists():
        log(f"{_SWITCH} is not there: slabs have the pages that the kernel gives")
        yield
        return
    before = _SWITCH.read_text().partition("[")[2].partition("]")[0]
    _SWITCH.write_text(choice)
    try:
        yield
    finally:
        _SWITCH.write_text(before)
