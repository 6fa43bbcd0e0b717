"""One slab: memory in a descriptor of its own, that other processes can map and never write.

The daemon keeps a writable mapping and a read-only descriptor. Seals forbid resizing and any further
writing through descriptors, also to a process that reopens one, so the mapping here is the only writer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)

_MLOCK_ONFAULT = 1
_F_SEAL_FUTURE_WRITE = 0x10
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL


class Slab:
    """``size_bytes`` of shared memory. Making one touches none of it.

    Pages come with the first read into them, in the reading threads and beside other reads: populating a
    fresh slab before reading it was measured to gain nothing (1 GB: 0.56 s against 0.52 s).
    """

    def __init__(self, size_bytes: int) -> None:
        writable = os.memfd_create("sllmd-slab", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(writable, size_bytes)
            self._memory = mmap.mmap(writable, size_bytes, mmap.MAP_SHARED)
            _seal(writable)
            self.descriptor = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writable)
        self.size_bytes = size_bytes
        self.pinned = False
        self.fresh = True
        """Some of its pages may never have been touched."""
        anchor = ctypes.c_char.from_buffer(self._memory)
        self._address = ctypes.addressof(anchor)
        _advise_huge_pages(self._memory)

    def view(self, start: int, stop: int) -> memoryview:
        """Writable bytes; must be released before the slab is closed."""
        with memoryview(self._memory) as whole:
            return whole[start:stop]

    def pin(self) -> int:
        """Lock its pages into memory as they are touched; 0, or the errno of the refusal."""
        if _libc.mlock2(ctypes.c_void_p(self._address), ctypes.c_size_t(self.size_bytes), _MLOCK_ONFAULT):
            return ctypes.get_errno()
        self.pinned = True
        return 0

    def close(self) -> None:
        """Give the memory back to the system. Takes milliseconds per slab of 64 MiB."""
        self._memory.close()
        os.close(self.descriptor)


def _seal(descriptor: int) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        # Kernels before 5.1 do not know the seal against later writers; the descriptors that are handed
        # out are read-only all the same.
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS & ~_F_SEAL_FUTURE_WRITE)


def _advise_huge_pages(memory: mmap.mmap) -> None:
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        # Advice to a kernel built without them.
        if error.errno != errno.EINVAL:
            raise
