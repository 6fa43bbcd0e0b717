"""Which bytes go where, in which order. Pure.

A load is a list of chunks in execution order. Each names a range of one data file and an address in one
partition; ``extents`` tells which pieces of which slabs that address range is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest

from sllmd.store.manifest import DataFile, Manifest, Partition


@dataclass(frozen=True, slots=True)
class Chunk:
    """Unit of reading, checking and cancelling."""

    file: DataFile
    partition: int
    index: int
    """In its file."""
    offset_bytes: int
    """In its file; aligned."""
    size_bytes: int
    address_bytes: int
    """In its partition; aligned."""
    digest: str | None
    """What its bytes must hash to; None: not known yet."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of one slab."""

    slab: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One load."""

    chunks: tuple[Chunk, ...]
    slabs: tuple[int, ...]
    """How many each partition takes."""
    size_bytes: int


def plan_load(manifest: Manifest, slab_bytes: int) -> Plan:
    """The chunks of all partitions, taken in turns so that all fill at the same pace.

    The store has checked the manifest: files lie aligned in their partitions, checksums cover them.
    """
    columns = [
        list(_partition_chunks(index, partition, manifest.chunk_bytes))
        for index, partition in enumerate(manifest.partitions)
    ]
    in_turns = chain.from_iterable(zip_longest(*columns))
    return Plan(
        chunks=tuple(chunk for chunk in in_turns if chunk is not None),
        slabs=tuple(-(-partition.span_bytes // slab_bytes) for partition in manifest.partitions),
        size_bytes=manifest.size_bytes,
    )


def _partition_chunks(number: int, partition: Partition, chunk_bytes: int) -> Iterator[Chunk]:
    for file in partition.files:
        count = -(-file.size_bytes // chunk_bytes)
        for index in range(count):
            offset = index * chunk_bytes
            yield Chunk(
                file=file,
                partition=number,
                index=index,
                offset_bytes=offset,
                size_bytes=min(chunk_bytes, file.size_bytes - offset),
                address_bytes=file.base_bytes + offset,
                digest=file.chunk_digests[index] if file.chunk_digests else None,
            )


def extents(address_bytes: int, size_bytes: int, slab_bytes: int) -> Iterator[Extent]:
    """The pieces of slabs that make up ``size_bytes`` of a partition from ``address_bytes`` on."""
    end = address_bytes + size_bytes
    while address_bytes < end:
        slab, start = divmod(address_bytes, slab_bytes)
        stop = min(slab_bytes, start + end - address_bytes)
        yield Extent(slab, start, stop)
        address_bytes += stop - start
