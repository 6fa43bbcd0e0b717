"""A partition's address space in this process: its slabs mapped one behind the other.

Owns: the mapping. Knows nothing of tensors and never imports torch. The slabs stay the DRAM tier's: what is
written here goes to private copies of the pages (copy on write), never to the tier.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import queue
import threading
from collections.abc import Sequence

from sllmd.core.errors import ModelLoadFailed
from sllmd.core.memory import PartitionMemory
from sllmd.core.units import MIB

POPULATE_STEP_BYTES = 32 * MIB
"""Pages mapped per call: about a millisecond, so that a thread that faults meanwhile never waits long."""

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_DONTDUMP = 16
_MADV_POPULATE_READ = 22
_PAGE_BYTES = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedPartition:
    """``span_bytes`` of memory at ``address``. Unmapped by ``close``, or with the process."""

    def __init__(self, memory: PartitionMemory, *, shared: bool = False) -> None:
        """Map ``memory``; its descriptors may be closed afterwards.

        ``shared`` maps the tier's own pages read-only, as pinning them for a device needs (pinning a private
        writable mapping would copy all of it). Raises ModelLoadFailed when the slabs are not what
        ``memory`` says, or the address space is exhausted.
        """
        _check(memory)
        self.span_bytes = memory.span_bytes
        self._mapped_bytes = _whole_pages(memory.span_bytes)
        self.address = 0
        if not memory.span_bytes:
            return
        self.address = _reserve(self._mapped_bytes)
        try:
            for start, length, descriptor in _pieces(memory):
                _map_over(self.address + start, length, descriptor, shared=shared)
        except ModelLoadFailed:
            self.close()
            raise
        self._advise(0, self._mapped_bytes, _MADV_DONTDUMP)  # a core dump needs no weights

    def buffer(self) -> memoryview:
        """All of it as bytes; must not be used after ``close``."""
        if not self.span_bytes:
            return memoryview(bytearray())
        array = (ctypes.c_ubyte * self.span_bytes).from_address(self.address)
        return memoryview(array).cast("B")

    def populate(self, start: int, stop: int) -> None:
        """Map the pages of bytes ``start`` to ``stop`` now rather than fault by fault. Only advice."""
        first = start // _PAGE_BYTES * _PAGE_BYTES
        stop = min(_whole_pages(stop), self._mapped_bytes)
        for position in range(first, stop, POPULATE_STEP_BYTES):
            self._advise(position, min(POPULATE_STEP_BYTES, stop - position), _MADV_POPULATE_READ)

    def close(self) -> None:
        """Unmap; idempotent."""
        if self.address:
            _libc.munmap(self.address, self._mapped_bytes)
            self.address = 0

    def _advise(self, start: int, length: int, advice: int) -> None:
        # A kernel that does not know an advice (MADV_POPULATE_READ came with 5.14) refuses it; pages then
        # come fault by fault.
        _libc.madvise(self.address + start, length, advice)


class Populator:
    """Maps the pages of what has arrived, in a thread of its own, while the model is built.

    Left to page faults, a gigabyte costs the first forward pass 50 to 100 ms; here it costs nobody anything.
    Never runs ahead of the bytes: to touch a slab's fresh pages before they are read into is slow.
    """

    def __init__(self, partitions: Sequence[MappedPartition]) -> None:
        self._partitions = partitions
        self._targets: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pages", daemon=True)
        self._thread.start()

    def advance(self, bytes_ready: Sequence[int]) -> None:
        """So many bytes of each partition are filled, counted from its start."""
        self._targets.put(tuple(bytes_ready))

    def finish(self) -> None:
        """All bytes are there; the thread ends when their pages are mapped."""
        self._targets.put(tuple(partition.span_bytes for partition in self._partitions))
        self._targets.put(())

    def _run(self) -> None:
        done_bytes = [0] * len(self._partitions)
        while target := self._targets.get():
            for index, (partition, ready_bytes) in enumerate(zip(self._partitions, target, strict=False)):
                if ready_bytes > done_bytes[index]:
                    partition.populate(done_bytes[index], ready_bytes)
                    done_bytes[index] = ready_bytes


def map_partitions(memory: tuple[PartitionMemory, ...], *, shared: bool = False) -> list[MappedPartition]:
    """Map every partition, or none and raise ModelLoadFailed."""
    mapped: list[MappedPartition] = []
    try:
        for partition in memory:
            mapped.append(MappedPartition(partition, shared=shared))  # noqa: PERF401 - undone on failure
    except ModelLoadFailed:
        for partition_mapped in mapped:
            partition_mapped.close()
        raise
    return mapped


def _whole_pages(count: int) -> int:
    return -(-count // _PAGE_BYTES) * _PAGE_BYTES


def _pieces(memory: PartitionMemory) -> list[tuple[int, int, int]]:
    """Start in the address space, length in whole pages, descriptor."""
    return [
        (start, min(memory.slab_bytes, _whole_pages(memory.span_bytes - start)), descriptor)
        for start, descriptor in zip(
            range(0, memory.span_bytes, memory.slab_bytes), memory.descriptors, strict=False
        )
    ]


def _check(memory: PartitionMemory) -> None:
    """A page behind the end of a slab would be a SIGBUS in the middle of a forward pass."""
    if not memory.span_bytes:
        return
    if memory.slab_bytes <= 0 or memory.slab_bytes % _PAGE_BYTES:
        raise ModelLoadFailed(f"a slab of {memory.slab_bytes} bytes is not whole pages")
    needed = -(-memory.span_bytes // memory.slab_bytes)
    if len(memory.descriptors) < needed:
        raise ModelLoadFailed(
            f"{memory.span_bytes} bytes need {needed} slabs, {len(memory.descriptors)} were given"
        )
    for start, length, descriptor in _pieces(memory):
        size = os.fstat(descriptor).st_size
        if _whole_pages(size) < length:
            raise ModelLoadFailed(f"the slab at byte {start} has {size} bytes, not {length}")


def _reserve(length: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return _mmap(None, length, _PROT_NONE, flags, -1)


def _map_over(address: int, length: int, descriptor: int, *, shared: bool) -> None:
    protection = mmap.PROT_READ if shared else mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | _MAP_NORESERVE
    _mmap(address, length, protection, flags | _MAP_FIXED, descriptor)


def _mmap(address: int | None, length: int, protection: int, flags: int, descriptor: int) -> int:
    got: int | None = _libc.mmap(address, length, protection, flags, descriptor, 0)
    if got is None or got == _MAP_FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise ModelLoadFailed(
            f"{length} bytes could not be mapped: {reason}",
            hint="look at `ulimit -v` and /proc/sys/vm/max_map_count",
        )
    return got
