"""A slab can be read by everybody who gets its descriptor, and written by nobody but us."""

from __future__ import annotations

import mmap
import os

import pytest

from sllmd.core.units import KIB, MIB
from sllmd.loader.slab import Slab
from tests.loader.conftest import open_descriptors, status_bytes


@pytest.fixture
def slab():
    slab = Slab(64 * KIB)
    yield slab
    slab.close()


def put(slab: Slab, at: int, content: bytes) -> None:
    with slab.view(at, at + len(content)) as view:
        view[:] = content


def test_what_is_written_here_is_read_there(slab):
    put(slab, 4096, b"weights")
    assert os.pread(slab.descriptor, 7, 4096) == b"weights"
    with mmap.mmap(slab.descriptor, 64 * KIB, mmap.MAP_PRIVATE, mmap.PROT_READ) as theirs:
        assert theirs[4096:4103] == b"weights"


def test_a_private_writable_mapping_changes_nothing_here(slab):
    put(slab, 0, b"ours")
    with mmap.mmap(slab.descriptor, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as theirs:
        theirs[:4] = b"mine"
    assert os.pread(slab.descriptor, 4, 0) == b"ours"


def test_nobody_writes_through_the_descriptor(slab):
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(slab.descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(slab.descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def test_not_even_after_reopening_it_for_writing(slab):
    reopened = os.open(f"/proc/self/fd/{slab.descriptor}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(reopened, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(reopened, 0)
        with pytest.raises(PermissionError):
            mmap.mmap(reopened, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(reopened)


def test_closing_it_returns_memory_and_descriptors():
    descriptors = open_descriptors()
    slab = Slab(8 * MIB)
    put(slab, 0, b"x" * (8 * MIB))
    held = status_bytes("RssShmem")
    slab.close()
    assert held - status_bytes("RssShmem") == 8 * MIB
    assert open_descriptors() == descriptors


def test_a_slab_that_is_in_use_is_not_closed(slab):
    with slab.view(0, 10), pytest.raises(BufferError):
        slab.close()
