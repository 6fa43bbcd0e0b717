"""Memory that two processes share, said in data: what the DRAM tier hands to a worker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PartitionMemory:
    """The slabs that hold one partition, in order.

    Mapped one behind the other they are the partition's address space: byte ``i`` lies in slab
    ``i // slab_bytes``. The descriptors are read-only and stay the DRAM tier's: whoever passes them on
    duplicates them, and must have every holder reaped before the lease on the copy is given back.
    """

    span_bytes: int
    slab_bytes: int
    descriptors: tuple[int, ...]
